#include <set>

#include "kernels/cpu/philox.h"
#include "tests/kernels/sampling_harness.h"

namespace inflight::test {
namespace {

constexpr int kDraws = 100000;
const std::vector<float> kLogits = {1.5f, -0.5f, 0.25f, 2.0f, 0.0f, -2.0f, 1.0f, 0.75f, -1.0f, 0.5f, 1.75f};

std::vector<float> random_logits(int size, Random& random, double scale = 1) {
  std::vector<float> out(size);
  for (float& logit : out) logit = static_cast<float>(random.normal() * scale);
  return out;
}

SamplingRow greedy() {
  SamplingRow row;
  row.temperature = 0;
  return row;
}

// The known answers that its authors publish with the generator.
TEST(Philox, KnownAnswers) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(cpu::philox({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(cpu::philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}), (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(cpu::philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Sampling, GreedyTakesTheHighestAndTheLowestIdOfTies) {
  EXPECT_EQ(sample_one(kLogits, greedy()), 3);
  EXPECT_EQ(sample_one({1, 5, 2, 5, 5}, greedy()), 1);
  SamplingRow top_one;
  top_one.top_k = 1;
  top_one.temperature = 3;
  EXPECT_EQ(sample_one({1, 5, 2, 5, 5}, top_one), 1);
}

TEST(Sampling, DrawsFollowTheSoftmax) {
  for (const float temperature : {0.3f, 1.0f, 4.0f}) {
    SamplingRow row;
    row.temperature = temperature;
    expect_distribution(histogram(kLogits, row, kDraws), softmax(kLogits, temperature),
                        concat("temperature ", temperature));
  }
}

TEST(Sampling, TopKKeepsTheLikeliest) {
  for (const int k : {2, 3, 7, 11, 500}) {
    SamplingRow row;
    row.top_k = k;
    Values want = softmax(kLogits);
    const std::vector<int> order = ranking(want);
    for (size_t i = k; i < order.size(); ++i) want[order[i]] = 0;
    expect_distribution(histogram(kLogits, row, kDraws), want, concat("top_k ", k));
  }
}

TEST(Sampling, TopKBreaksTiesByLowerId) {
  SamplingRow row;
  row.top_k = 2;
  expect_distribution(histogram({1, 3, 3, 3, 3, 3, 3}, row, 1000), {0, 1, 1, 0, 0, 0, 0}, "ties");
}

Values nucleus(Values probabilities, double mass, const std::vector<int>& order) {
  double held = 0, sum = std::accumulate(probabilities.begin(), probabilities.end(), 0.0);
  for (const int id : order) {
    if (held >= mass * sum) {
      probabilities[id] = 0;
    } else {
      held += probabilities[id];
    }
  }
  return probabilities;
}

TEST(Sampling, TopPKeepsTheNucleus) {
  const std::vector<int> order = ranking(softmax(kLogits));
  for (const float top_p : {0.0f, 0.1f, 0.5f, 0.9f, 0.999f}) {
    SamplingRow row;
    row.top_p = top_p;
    Values want = nucleus(softmax(kLogits), std::max<double>(top_p, 1e-9), order);
    expect_distribution(histogram(kLogits, row, kDraws), want, concat("top_p ", top_p));
  }
}

TEST(Sampling, TopPCountsWhatTopKLeft) {
  Values left = softmax(kLogits);
  const std::vector<int> order = ranking(left);
  for (size_t i = 4; i < order.size(); ++i) left[order[i]] = 0;
  SamplingRow row;
  row.top_k = 4;
  row.top_p = 0.6f;
  expect_distribution(histogram(kLogits, row, kDraws), nucleus(left, 0.6, order), "top_k 4, top_p 0.6");
}

// A nucleus of thousands of tokens, found without sorting the vocabulary.
TEST(Sampling, TopPOfALargeVocabulary) {
  Random random;
  const std::vector<float> logits = random_logits(8000, random, 0.5);
  const Values all = softmax(logits);
  for (const double top_p : {0.02, 0.3, 0.9}) {
    const Values want = nucleus(all, top_p, ranking(all));
    SamplingRow row;
    row.top_p = static_cast<float>(top_p);
    const std::vector<int> counts = histogram(logits, row, 2000);
    int outside = 0;
    double kept = 0, low_half = 0, drawn_low = 0;
    for (size_t i = 0; i < counts.size(); ++i) {
      outside += want[i] == 0 ? counts[i] : 0;
      kept += want[i];
      low_half += i < counts.size() / 2 ? want[i] : 0;
      drawn_low += i < counts.size() / 2 ? counts[i] : 0;
    }
    EXPECT_LE(outside, 1) << "float32 sums may admit one token more than double's";
    EXPECT_NEAR(drawn_low / 2000, low_half / kept, 0.06);
  }
}

TEST(Sampling, MinPDropsTheUnlikely) {
  for (const float min_p : {0.05f, 0.4f, 1.0f})
    for (const float temperature : {1.0f, 2.0f}) {
      SamplingRow row;
      row.min_p = min_p;
      row.temperature = temperature;
      Values want = softmax(kLogits, temperature);
      const double least = min_p * *std::max_element(want.begin(), want.end()) * (1 - 1e-6);
      for (double& p : want) p = p < least ? 0 : p;
      expect_distribution(histogram(kLogits, row, kDraws), want, concat("min_p ", min_p));
    }
}

TEST(Sampling, FiltersCompose) {
  SamplingRow row;
  row.top_k = 8;
  row.top_p = 0.95f;
  row.min_p = 0.3f;
  row.temperature = 1.5f;
  Values want = softmax(kLogits, 1.5);
  const std::vector<int> order = ranking(want);
  for (size_t i = 8; i < order.size(); ++i) want[order[i]] = 0;
  want = nucleus(want, 0.95, order);
  for (double& p : want) p = p < 0.3 * want[order[0]] ? 0 : p;
  expect_distribution(histogram(kLogits, row, kDraws), want, "all filters");
}

TEST(Sampling, TheDrawDependsOnSeedStreamAndStepAlone) {
  Random random;
  const std::vector<float> logits = random_logits(1000, random);
  const std::vector<int32_t> history(50, 3);
  std::vector<SamplingRow> rows;
  for (int i = 0; i < 64; ++i) {
    SamplingRow row;
    row.seed = i / 16;
    row.stream = i / 4 % 4;
    row.history = std::span(history).first(10 + i % 4);
    row.prompt_length = 10;
    rows.push_back(row);
  }
  const std::vector<int32_t> together = sample_rows(logits, rows, 3).tokens;
  for (size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(sample_one(logits, rows[i]), together[i]) << i;
  const std::set<int32_t> different(together.begin(), together.end());
  EXPECT_GT(different.size(), 45u) << "of 64 draws among about 600 likely tokens";
  // The prompt's length does not matter, only how many tokens were generated.
  SamplingRow longer = rows[2];
  longer.history = history;
  longer.prompt_length = 48;
  EXPECT_EQ(sample_one(logits, longer), together[2]);
}

TEST(Sampling, LogProbsAreOfTheRawLogits) {
  Random random;
  for (const int vocabulary : {1, 7, 1000, 4099}) {
    const std::vector<float> logits = random_logits(vocabulary, random, 4);
    const std::vector<float> bias = random_logits(vocabulary, random, 10);
    SamplingRow row = greedy(), silent = greedy();
    row.want_log_prob = true;
    row.bias = bias;
    SamplingRow drawn = row;
    drawn.temperature = 5;
    const Sampled out = sample_rows(logits, {row, silent, drawn});
    const Values want = softmax(logits);
    for (const int i : {0, 2}) EXPECT_NEAR(out.log_probs[i], std::log(want[out.tokens[i]]), 1e-5);
    EXPECT_EQ(out.log_probs[1], 0);
  }
}

TEST(Sampling, SurvivesBrokenLogits) {
  const float infinity = std::numeric_limits<float>::infinity();
  SamplingRow drawn;
  drawn.want_log_prob = true;
  for (const float top_p : {1.0f, 0.5f})
    for (const int top_k : {0, 2}) {
      drawn.top_p = top_p;
      drawn.top_k = top_k;
      EXPECT_EQ(sample_one({NAN, NAN, 1, NAN}, drawn), 2);
      EXPECT_EQ(sample_one({-infinity, -infinity, -infinity, 3}, drawn), 3);
      EXPECT_EQ(sample_one({0, infinity, 1, 2}, drawn), 1);
      const int32_t token = sample_one({NAN, -infinity, NAN}, drawn);
      EXPECT_TRUE(token >= 0 && token < 3);
    }
  SamplingRow row = greedy();
  row.want_log_prob = true;
  EXPECT_EQ(sample_one({NAN, NAN}, row), 0);
  EXPECT_EQ(sample_one({NAN, -1, NAN}, row), 1);
  drawn.temperature = 1e-30f;
  EXPECT_EQ(sample_one(kLogits, drawn), 3);
}

}  // namespace
}  // namespace inflight::test
