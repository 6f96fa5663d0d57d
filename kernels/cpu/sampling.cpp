// One row is one task: rules on the logits, then the argmax or a draw. All randomness is a function of the row's seed,
// stream and number of generated tokens.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/draft_rule.h"
#include "kernels/cpu/logit_rules.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/philox.h"
#include "kernels/cpu/row_checks.h"
#include "kernels/cpu/signature.h"
#include "kernels/cpu/token_filter.h"
#include "kernels/cpu/vec.h"
#include "kernels/cpu/work.h"

namespace inflight::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Scratch of one thread, kept between calls.
struct Sampler {
  LogitRules rules;
  TokenFilter filter;
  DraftRule drafts;
  std::vector<float> raw;
};

// NaN and +inf make no log prob: they count as -inf here, as NaN does everywhere.
Vec finite(Vec logits) { return logits < kInfinity ? logits : -broadcast(kInfinity); }

float log_prob(std::span<const float> logits, int32_t token) {
  Vec highest = broadcast(-kInfinity);
  const auto size = static_cast<int64_t>(logits.size());
  const auto padded = [&](int64_t i, int64_t count) {
    Vec out = broadcast(-kInfinity);
    std::memcpy(&out, logits.data() + i, static_cast<size_t>(count) * sizeof(float));
    return finite(out);
  };
  for_each_vec(size, [&](int64_t i, int64_t count) { highest = max(highest, padded(i, count)); });
  const float top = max_lanes(highest);
  if (top == -kInfinity) return -kInfinity;
  Vec sum = {};
  for_each_vec(size, [&](int64_t i, int64_t count) { sum += exp(padded(i, count) - top); });
  const float logit = logits[token] < kInfinity ? logits[token] : -kInfinity;
  return logit - top - std::log(sum_lanes(sum));
}

int32_t choose(const SamplingRow& row, std::span<float> logits, Sampler& sampler) {
  sampler.rules.apply(row, logits);
  if (row.temperature == 0 || row.top_k == 1)
    return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  if (row.verifies_draft()) return sampler.drafts.choose(row, logits, sampler.rules, sampler.filter);
  const auto generated = static_cast<uint64_t>(row.history.size()) - row.prompt_length;
  return sampler.filter.draw(row, logits, philox_uniform(row.seed, row.stream, generated));
}

void sample_row(const SampleArgs& args, int64_t index, Sampler& sampler) {
  const int64_t vocabulary = args.logits.shape[1];
  const std::span logits(args.logits.as<float>() + index * vocabulary, vocabulary);
  const SamplingRow& row = args.rows[index];
  args.tokens[index] = 0;
  args.log_probs[index] = 0;
  if (row.num_candidates > 0) return;
  if (row.want_log_prob) sampler.raw.assign(logits.begin(), logits.end());
  args.tokens[index] = choose(row, logits, sampler);
  if (row.want_log_prob) args.log_probs[index] = log_prob(sampler.raw, args.tokens[index]);
}

}  // namespace

void sample(const SampleArgs& args, DeviceContext& context) {
  Dim l("L", args.rows.size()), v("V");
  Signature("sample").view("logits", args.logits, {l, v}, kFloat);
  check(static_cast<int64_t>(args.tokens.size()) == l && static_cast<int64_t>(args.log_probs.size()) == l,
        ErrorCode::kInvalidArgument, "sample: ", args.tokens.size(), " tokens and ", args.log_probs.size(),
        " log probs for ", l.value, " rows");
  check(v > 0 || l == 0, ErrorCode::kInvalidArgument, "sample: the vocabulary is empty");
  for (int64_t i = 0; i < l; ++i) check_row("sample", args.rows[i], i, v);
  parallel_items(context, l, v, [&](int64_t begin, int64_t end) {
    thread_local Sampler sampler;
    for (int64_t i = begin; i < end; ++i) sample_row(args, i, sampler);
  });
}

}  // namespace inflight::cpu
