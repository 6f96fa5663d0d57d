#include "tests/kernels/sampling_harness.h"

namespace inflight::test {
namespace {

struct Candidates {
  std::vector<int32_t> tokens;
  std::vector<float> log_probs;
};

/// Every row from the same logits.
Candidates rank_rows(const std::vector<float>& logits, const std::vector<SamplingRow>& rows, int threads = 2) {
  const auto count = static_cast<int64_t>(rows.size()), vocabulary = static_cast<int64_t>(logits.size());
  Tensor all(DType::kFloat32, {count, vocabulary});
  for (int64_t i = 0; i < count; ++i) std::copy(logits.begin(), logits.end(), all.view().as<float>() + i * vocabulary);
  size_t total = 0;
  for (const SamplingRow& row : rows) total += row.num_candidates;
  Candidates out{std::vector<int32_t>(total, -2), std::vector<float>(total, NAN)};
  ops().best_candidates({all, rows, out.tokens, out.log_probs}, context(threads));
  EXPECT_TRUE(all.guard_intact());
  return out;
}

SamplingRow beam(int count) {
  SamplingRow row;
  row.num_candidates = count;
  return row;
}

std::vector<float> random_logits(int size, uint64_t seed) {
  Random random(seed);
  std::vector<float> out(size);
  for (float& logit : out) logit = static_cast<float>(random.normal() * 3);
  return out;
}

void expect_best(const Candidates& found, const Values& probabilities, size_t begin, size_t count) {
  const std::vector<int> order = ranking(probabilities);
  for (size_t i = 0; i < count; ++i) {
    ASSERT_EQ(found.tokens[begin + i], order[i]) << "place " << i;
    ASSERT_NEAR(found.log_probs[begin + i], std::log(probabilities[order[i]]), 1e-5) << "place " << i;
  }
}

TEST(Candidates, AreTheLikeliestWithTheirLogSoftmax) {
  for (const int vocabulary : {1, 2, 17, 1000, 32003}) {
    const std::vector<float> logits = random_logits(vocabulary, vocabulary);
    const int count = std::min(vocabulary, 9);
    for (const float temperature : {1.0f, 0.4f, 3.0f}) {
      SamplingRow row = beam(count);
      row.temperature = temperature;
      expect_best(rank_rows(logits, {row, row}), softmax(logits, temperature), count, count);
    }
  }
}

TEST(Candidates, ZeroTemperatureCountsAsOneAndFiltersHaveNoEffect) {
  const std::vector<float> logits = random_logits(50, 1);
  SamplingRow row = beam(8);
  row.temperature = 0;
  row.top_k = 2;
  row.top_p = 0.1f;
  row.min_p = 0.9f;
  expect_best(rank_rows(logits, {row}), softmax(logits), 0, 8);
}

TEST(Candidates, EqualOnesComeByLowerId) {
  const Candidates found = rank_rows({1, 5, 2, 5, 5, 1}, {beam(5)});
  EXPECT_EQ(found.tokens, (std::vector<int32_t>{1, 3, 4, 2, 0}));
}

TEST(Candidates, BansAndBiasChangeTheDistribution) {
  const std::vector<int32_t> history = {4, 1}, ends = {2};
  const std::vector<float> bias = {0, 0, 0, 0.5f, 0};
  SamplingRow row = beam(5);
  row.history = history;
  row.prompt_length = 2;
  row.min_tokens = 1;
  row.end_ids = ends;
  row.bias = bias;
  const Candidates found = rank_rows({0.5f, 1, 3, 1, 0.75f}, {row});
  EXPECT_EQ(found.tokens, (std::vector<int32_t>{3, 1, 4, 0, 2}));
  EXPECT_EQ(found.log_probs.back(), -INFINITY);
  double sum = 0;
  for (const float value : found.log_probs) sum += std::exp(value);
  EXPECT_NEAR(sum, 1, 1e-6);
}

TEST(Candidates, BehindTheVocabularyThereIsNone) {
  const Candidates found = rank_rows({1, 2}, {beam(4)});
  EXPECT_EQ(found.tokens, (std::vector<int32_t>{1, 0, -1, -1}));
  EXPECT_EQ(found.log_probs[2], -INFINITY);
}

TEST(Candidates, InfiniteAndBrokenLogits) {
  const Candidates two = rank_rows({1, INFINITY, NAN, INFINITY}, {beam(4)});
  EXPECT_EQ(two.tokens, (std::vector<int32_t>{1, 3, 0, 2}));
  EXPECT_NEAR(two.log_probs[0], std::log(0.5), 1e-6);
  const Candidates none = rank_rows({NAN, -INFINITY}, {beam(2)});
  EXPECT_EQ(none.tokens, (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(none.log_probs, (std::vector<float>{-INFINITY, -INFINITY}));
}

TEST(Candidates, SampledRowsAndBeamsLeaveEachOtherAlone) {
  const std::vector<float> logits = random_logits(100, 2);
  SamplingRow greedy;
  greedy.temperature = 0;
  const std::vector<SamplingRow> rows = {greedy, beam(3), greedy, beam(5)};
  const Candidates found = rank_rows(logits, rows);
  ASSERT_EQ(found.tokens.size(), 8u);
  expect_best(found, softmax(logits), 0, 3);
  expect_best(found, softmax(logits), 3, 5);
  const std::vector<int32_t> sampled = sample_rows(logits, rows).tokens;
  EXPECT_EQ(sampled, (std::vector<int32_t>{found.tokens[0], 0, found.tokens[0], 0}));
}

TEST(Candidates, RefusesWrongSizes) {
  Tensor logits(DType::kFloat32, {1, 4});
  std::vector<SamplingRow> rows = {beam(2)};
  std::vector<int32_t> tokens(1);
  std::vector<float> log_probs(2);
  EXPECT_THROW(ops().best_candidates({logits, rows, tokens, log_probs}, context(1)), Error);
}

}  // namespace
}  // namespace inflight::test
