#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "inflight/ops/sampling.h"

namespace inflight::cpu {

/// What changes one row's logits before a token is drawn: bias, penalties and bans. Keeps its scratch between rows.
class LogitRules {
 public:
  /// Applies all of `row`'s rules in the order of SamplingRow to `logits` ([V]). NaN counts as -inf. When the bans
  /// leave no token, the highest logit among the banned comes back: a token must be produced.
  void apply(const SamplingRow& row, std::span<float> logits);

 private:
  struct Ban {
    int32_t token;
    float logit;
  };

  void penalise_seen(const SamplingRow& row, std::span<float> logits);
  void penalise_counted(const SamplingRow& row, std::span<float> logits);
  void ban(int32_t token, std::span<float> logits);
  void ban_words(const SamplingRow& row, std::span<float> logits);
  void ban_ngrams(const SamplingRow& row, std::span<float> logits);
  void ban_ends(const SamplingRow& row, std::span<float> logits);
  void restore_best_if_empty(std::span<float> logits);

  std::vector<int32_t> counts_;  // [V], all zero between uses
  std::vector<Ban> bans_;
};

}  // namespace inflight::cpu
