// The best continuations of a beam: the rules of sampling, then the likeliest tokens and their log probs.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <ranges>
#include <vector>

#include "kernels/cpu/logit_rules.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/row_checks.h"
#include "kernels/cpu/signature.h"
#include "kernels/cpu/vec.h"
#include "kernels/cpu/work.h"

namespace inflight::cpu {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// log of the sum of exp((logit - highest) / temperature).
float log_sum(std::span<const float> logits, float highest, float temperature) {
  if (highest == kMinusInfinity) return 0;
  Vec sum = {};
  for_each_vec(static_cast<int64_t>(logits.size()), [&](int64_t first, int64_t count) {
    Vec lanes = broadcast(kMinusInfinity);
    std::memcpy(&lanes, logits.data() + first, static_cast<size_t>(count) * sizeof(float));
    sum += exp((lanes - highest) / temperature);
  });
  return std::log(sum_lanes(sum));
}

void rank_row(const SamplingRow& row, std::span<float> logits, std::span<int32_t> tokens, std::span<float> log_probs) {
  thread_local LogitRules rules;
  rules.apply(row, logits);
  for (float& logit : logits) logit = std::min(logit, FLT_MAX);  // tokens of +inf share all the probability
  const auto better = [&](int32_t a, int32_t b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); };
  const auto ids = std::views::iota(int32_t{0}, static_cast<int32_t>(logits.size()));
  std::fill(tokens.begin(), tokens.end(), -1);
  std::fill(log_probs.begin(), log_probs.end(), kMinusInfinity);
  const auto end = std::partial_sort_copy(ids.begin(), ids.end(), tokens.begin(), tokens.end(), better);
  const float highest = logits[tokens.front()];
  if (highest == kMinusInfinity) return;
  const float temperature = row.temperature > 0 ? row.temperature : 1.0f;
  const float rest = log_sum(logits, highest, temperature);
  for (auto place = tokens.begin(); place != end; ++place)
    log_probs[place - tokens.begin()] = (logits[*place] - highest) / temperature - rest;
}

}  // namespace

void best_candidates(const CandidatesArgs& args, DeviceContext& context) {
  Dim l("L", args.rows.size()), v("V");
  Signature("best_candidates").view("logits", args.logits, {l, v}, kFloat);
  check(v > 0 || l == 0, ErrorCode::kInvalidArgument, "best_candidates: the vocabulary is empty");
  std::vector<size_t> begins(1, 0);
  for (int64_t i = 0; i < l; ++i) {
    check_row("best_candidates", args.rows[i], i, v);
    begins.push_back(begins.back() + std::max(0, args.rows[i].num_candidates));
  }
  check(args.tokens.size() == begins.back() && args.log_probs.size() == begins.back(), ErrorCode::kInvalidArgument,
        "best_candidates: ", args.tokens.size(), " tokens and ", args.log_probs.size(), " log probs for ",
        begins.back(), " candidates");
  parallel_items(context, l, v, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const size_t count = begins[i + 1] - begins[i];
      if (count == 0) continue;
      rank_row(args.rows[i], {args.logits.as<float>() + i * v, static_cast<size_t>(v.value)},
               args.tokens.subspan(begins[i], count), args.log_probs.subspan(begins[i], count));
    }
  });
}

}  // namespace inflight::cpu
