#include "kernels/cpu/draft_rule.h"

#include <algorithm>

#include "kernels/cpu/philox.h"

namespace inflight::cpu {
namespace {

// Random streams of their own, beside the one that tokens are drawn with.
constexpr uint64_t kAcceptance = uint64_t{1} << 63;
constexpr uint64_t kRest = uint64_t{1} << 62;

}  // namespace

int32_t DraftRule::choose(const SamplingRow& row, std::span<const float> logits, LogitRules& rules,
                          TokenFilter& filter) {
  draft_logits_.assign(row.draft_logits.begin(), row.draft_logits.end());
  rules.apply(row, draft_logits_);
  filter.probabilities(row, logits, wanted_);
  filter.probabilities(row, draft_logits_, drafted_);
  const uint64_t index = row.history.size() - static_cast<uint64_t>(row.prompt_length);
  if (is_taken(row, index)) return row.draft_token;
  const double uniform = philox_uniform(row.seed, row.stream ^ kRest, index);
  if (const std::optional<int32_t> token = draw_rest(uniform)) return *token;
  return filter.draw(row, logits, uniform);
}

bool DraftRule::is_taken(const SamplingRow& row, uint64_t index) const {
  const double wanted = wanted_[row.draft_token], drafted = drafted_[row.draft_token];
  if (wanted == 0) return false;
  if (row.draft_threshold > 0) return wanted >= row.draft_threshold * drafted;
  return philox_uniform(row.seed, row.stream ^ kAcceptance, index) * drafted < wanted;
}

/// From the positive part of wanted - drafted; none where there is none, by roundings.
std::optional<int32_t> DraftRule::draw_rest(double uniform) const {
  const auto rest = [&](size_t token) { return std::max(0.0, wanted_[token] - drafted_[token]); };
  double total = 0;
  for (size_t token = 0; token < wanted_.size(); ++token) total += rest(token);
  std::optional<int32_t> last;
  double passed = 0;
  for (size_t token = 0; token < wanted_.size(); ++token) {
    if (rest(token) == 0) continue;
    last = static_cast<int32_t>(token);
    passed += rest(token);
    if (passed > uniform * total) break;
  }
  return last;
}

}  // namespace inflight::cpu
