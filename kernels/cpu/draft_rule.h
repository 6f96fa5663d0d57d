#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "inflight/ops/sampling.h"
#include "kernels/cpu/logit_rules.h"
#include "kernels/cpu/token_filter.h"

namespace inflight::cpu {

/// Takes a draft token or draws another one, so that what comes out is distributed as if there had been no draft
/// (Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding"). Keeps its scratch between
/// rows.
class DraftRule {
 public:
  /// The draft token where it is taken; else a token that is not it, unless both distributions are the same. `logits`
  /// [V] are the target's with the row's rules applied; the row has draft_logits and a temperature > 0. The random
  /// numbers are none that draw() gets: a draft model with the same seed has used those.
  int32_t choose(const SamplingRow& row, std::span<const float> logits, LogitRules& rules, TokenFilter& filter);

 private:
  bool is_taken(const SamplingRow& row, uint64_t index) const;
  std::optional<int32_t> draw_rest(double uniform) const;

  std::vector<float> draft_logits_;
  std::vector<double> wanted_, drafted_;  // probabilities [V]
};

}  // namespace inflight::cpu
