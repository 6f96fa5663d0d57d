#pragma once

#include "tests/kernels/harness.h"

namespace inflight::test {

struct Sampled {
  std::vector<int32_t> tokens;
  std::vector<float> log_probs;
};

/// Samples every row from the same logits.
inline Sampled sample_rows(const std::vector<float>& logits, const std::vector<SamplingRow>& rows, int threads = 2) {
  const auto count = static_cast<int64_t>(rows.size()), vocabulary = static_cast<int64_t>(logits.size());
  Tensor all(DType::kFloat32, {count, vocabulary});
  for (int64_t i = 0; i < count; ++i) std::copy(logits.begin(), logits.end(), all.view().as<float>() + i * vocabulary);
  Sampled out{std::vector<int32_t>(count, -1), std::vector<float>(count, NAN)};
  ops().sample({all, rows, out.tokens, out.log_probs}, context(threads));
  EXPECT_TRUE(all.guard_intact());
  return out;
}

inline int32_t sample_one(const std::vector<float>& logits, const SamplingRow& row) {
  return sample_rows(logits, {row}).tokens[0];
}

/// `count` draws with seeds 0, 1, ...
inline std::vector<int> histogram(const std::vector<float>& logits, const SamplingRow& row, int count) {
  std::vector<SamplingRow> rows(count, row);
  for (int i = 0; i < count; ++i) rows[i].seed = i;
  std::vector<int> out(logits.size());
  for (const int32_t token : sample_rows(logits, rows).tokens) ++out.at(token);
  return out;
}

inline Values softmax(const std::vector<float>& logits, double temperature = 1) {
  const double top = *std::max_element(logits.begin(), logits.end());
  Values out;
  for (const float logit : logits) out.push_back(std::exp((logit - top) / temperature));
  const double sum = std::accumulate(out.begin(), out.end(), 0.0);
  for (double& p : out) p /= sum;
  return out;
}

/// Ids from the likeliest on.
inline std::vector<int> ranking(const Values& probabilities) {
  std::vector<int> ids(probabilities.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int a, int b) { return probabilities[a] > probabilities[b]; });
  return ids;
}

/// Pearson's statistic against `probabilities` (renormalised); a draw of an impossible token makes it infinite.
/// Its mean is the number of possible tokens - 1 and its variance twice that.
inline void expect_distribution(const std::vector<int>& counts, Values probabilities, const std::string& what) {
  const double total = std::accumulate(counts.begin(), counts.end(), 0.0);
  const double sum = std::accumulate(probabilities.begin(), probabilities.end(), 0.0);
  double statistic = 0, freedom = -1;
  for (size_t i = 0; i < counts.size(); ++i) {
    const double expected = total * probabilities[i] / sum;
    if (expected == 0) {
      EXPECT_EQ(counts[i], 0) << what << ": token " << i << " is impossible";
      continue;
    }
    statistic += (counts[i] - expected) * (counts[i] - expected) / expected;
    ++freedom;
  }
  EXPECT_LT(statistic, freedom + 5 * std::sqrt(2 * std::max(freedom, 1.0)) + 5) << what;
}

}  // namespace inflight::test
