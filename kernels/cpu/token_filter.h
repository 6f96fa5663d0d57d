#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "inflight/ops/sampling.h"

namespace inflight::cpu {

/// The tokens that temperature, top-k, top-p and min-p leave, with their unnormalised probabilities, and the draw among
/// them. Tokens rank by logit, equal logits by lower id, so that the set is the same however it was found. Keeps its
/// scratch between rows.
class TokenFilter {
 public:
  /// One token of `logits` ([V], no NaN) for a uniform number in [0, 1). The row's temperature is > 0. Tokens of +inf
  /// share all the probability; where every logit is -inf, all tokens are alike.
  int32_t draw(const SamplingRow& row, std::span<const float> logits, double uniform);

  /// The probabilities among which draw() chooses, into `out` [V].
  void probabilities(const SamplingRow& row, std::span<const float> logits, std::vector<double>& out);

 private:
  struct Candidate {
    int32_t token;
    float logit;
    float weight;  // exp((logit - highest) / temperature)
  };

  static bool ranks_before(const Candidate& a, const Candidate& b);
  void filter(const SamplingRow& row, std::span<const float> logits);
  void keep_all(std::span<const float> logits);
  void keep_top(std::span<const float> logits, size_t count);
  void drop_behind(size_t count);
  void weigh(float temperature, float highest);
  double total_weight() const;
  void apply_top_p(double top_p);
  Candidate find_cut(double mass);
  void drop_lighter(double least);
  int32_t pick(double uniform) const;

  std::vector<Candidate> candidates_;  // in the order of their ids between the steps
  std::vector<Candidate> partitioned_;
};

}  // namespace inflight::cpu
