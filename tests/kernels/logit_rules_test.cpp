#include "tests/kernels/sampling_harness.h"

namespace inflight::test {
namespace {

// What the rules make of the logits: the op leaves them in its input.
std::vector<float> ruled(const std::vector<float>& logits, SamplingRow row) {
  row.temperature = 0;
  Tensor all(DType::kFloat32, {1, static_cast<int64_t>(logits.size())});
  std::copy(logits.begin(), logits.end(), all.view().as<float>());
  std::vector<int32_t> tokens(1);
  std::vector<float> log_probs(1);
  ops().sample({all, {&row, 1}, tokens, log_probs}, context());
  return {all.view().as<float>(), all.view().as<float>() + logits.size()};
}

constexpr float kBanned = -std::numeric_limits<float>::infinity();
const std::vector<float> kLogits = {1, -1, 2, -2, 0.5f, 3};
const std::vector<int32_t> kHistory = {2, 3, 0, 1, 0, 1, 1};  // the first three are the prompt

SamplingRow with_history() {
  SamplingRow row;
  row.history = kHistory;
  row.prompt_length = 3;
  return row;
}

TEST(LogitRules, NothingAskedNothingChanged) { EXPECT_EQ(ruled(kLogits, with_history()), kLogits); }

TEST(LogitRules, Bias) {
  const std::vector<float> bias = {0.5f, 0, -1, 0, 100, 0};
  SamplingRow row;
  row.bias = bias;
  EXPECT_EQ(ruled(kLogits, row), (std::vector<float>{1.5f, -1, 1, -2, 100.5f, 3}));
}

TEST(LogitRules, RepetitionPenaltyCountsThePromptOncePerToken) {
  SamplingRow row = with_history();
  row.repetition_penalty = 2;
  EXPECT_EQ(ruled(kLogits, row), (std::vector<float>{0.5f, -2, 1, -4, 0.5f, 3}));
}

TEST(LogitRules, PresenceAndFrequencyCountThePromptToo) {
  SamplingRow row = with_history();
  row.presence_penalty = 0.25f;
  EXPECT_EQ(ruled(kLogits, row), (std::vector<float>{0.75f, -1.25f, 1.75f, -2.25f, 0.5f, 3}));
  row.frequency_penalty = 0.5f;
  EXPECT_EQ(ruled(kLogits, row), (std::vector<float>{-0.25f, -2.75f, 1.25f, -2.75f, 0.5f, 3}));
}

TEST(LogitRules, IgnoredPromptTokensCountForRepetitionAlone) {
  SamplingRow row = with_history();
  row.frequency_penalty = 0.5f;
  row.prompt_ignore_length = 1;
  EXPECT_EQ(ruled(kLogits, row), (std::vector<float>{0, -2.5f, 2, -2.5f, 0.5f, 3}));
  row.repetition_penalty = 2;
  EXPECT_EQ(ruled(kLogits, row), (std::vector<float>{-0.5f, -3.5f, 1, -4.5f, 0.5f, 3}));
}

TEST(LogitRules, IgnoringMoreThanThePromptLeavesTheGenerated) {
  SamplingRow row = with_history();
  row.prompt_ignore_length = 1 << 30;
  row.presence_penalty = 0.25f;
  EXPECT_EQ(ruled(kLogits, row), (std::vector<float>{0.75f, -1.25f, 2, -2, 0.5f, 3}));
  row.presence_penalty = 0;
  row.frequency_penalty = 0.5f;
  EXPECT_EQ(ruled(kLogits, row), (std::vector<float>{0.5f, -2.5f, 2, -2, 0.5f, 3}));
  row.presence_penalty = 0.25f;
  row.repetition_penalty = 2;
  EXPECT_EQ(ruled(kLogits, row), (std::vector<float>{-0.25f, -3.75f, 1, -4, 0.5f, 3}));
}

TEST(LogitRules, NoRepeatedNgrams) {
  SamplingRow row = with_history();
  row.no_repeat_ngram_size = 1;
  EXPECT_EQ(ruled(kLogits, row), (std::vector<float>{kBanned, kBanned, kBanned, kBanned, 0.5f, 3}));
  row.no_repeat_ngram_size = 2;  // 1 was followed by 0 and by 1
  EXPECT_EQ(ruled(kLogits, row), (std::vector<float>{kBanned, kBanned, 2, -2, 0.5f, 3}));
  row.no_repeat_ngram_size = 3;  // (1, 1) never before
  EXPECT_EQ(ruled(kLogits, row), kLogits);
  row.history = row.history.first(6);  // (0, 1) was followed by 0
  EXPECT_EQ(ruled(kLogits, row), (std::vector<float>{kBanned, -1, 2, -2, 0.5f, 3}));
  row.no_repeat_ngram_size = 50;
  EXPECT_EQ(ruled(kLogits, row), kLogits);
}

TEST(LogitRules, BadWords) {
  const std::vector<int32_t> words = {5, 1, 1, 2, 0, 1, 3, 1, 4}, ends = {1, 4, 7, 9};  // 5; 1 1 2; 0 1 3; 1 4
  SamplingRow row = with_history();
  row.bad_words = words;
  row.bad_word_ends = ends;
  EXPECT_EQ(ruled(kLogits, row), (std::vector<float>{1, -1, kBanned, -2, kBanned, kBanned}));
  row.history = row.history.first(6);
  EXPECT_EQ(ruled(kLogits, row), (std::vector<float>{1, -1, 2, kBanned, kBanned, kBanned}));
  row.history = {};
  row.prompt_length = 0;
  EXPECT_EQ(ruled(kLogits, row), (std::vector<float>{1, -1, 2, -2, 0.5f, kBanned}));
}

TEST(LogitRules, NoEndBeforeMinTokens) {
  const std::vector<int32_t> stops = {0, 4}, ends = {5, 1};
  SamplingRow row = with_history();  // of which 4 tokens are generated
  row.end_ids = ends;
  row.stop_token_ids = stops;
  row.min_tokens = 6;
  EXPECT_EQ(ruled(kLogits, row), (std::vector<float>{kBanned, kBanned, 2, -2, kBanned, kBanned}));
  row.min_tokens = 5;  // a stop word would be the fifth
  EXPECT_EQ(ruled(kLogits, row), (std::vector<float>{1, kBanned, 2, -2, 0.5f, kBanned}));
  row.min_tokens = 4;
  EXPECT_EQ(ruled(kLogits, row), kLogits);
}

TEST(LogitRules, WhenAllIsBannedTheBestComesBack) {
  const std::vector<int32_t> words = {5, 4, 3, 2, 1, 0, 5}, ends = {1, 2, 3, 4, 5, 6, 7};
  SamplingRow row;
  row.bad_words = words;
  row.bad_word_ends = ends;
  EXPECT_EQ(ruled(kLogits, row), (std::vector<float>{kBanned, kBanned, kBanned, kBanned, kBanned, 3}));
  EXPECT_EQ(sample_one(kLogits, row), 5);
  EXPECT_EQ(ruled({2, 2, 2, 2, 2, 2}, row)[0], 2);
}

TEST(LogitRules, ScratchIsCleanForTheNextRow) {
  SamplingRow first = with_history(), second;
  first.repetition_penalty = 2;
  first.frequency_penalty = 1;
  first.no_repeat_ngram_size = 1;
  const std::vector<float> once = ruled(kLogits, first);
  EXPECT_EQ(ruled(kLogits, second), kLogits);
  EXPECT_EQ(ruled(kLogits, first), once);
}

TEST(LogitRules, TokensOutsideTheVocabularyAreIgnored) {
  const std::vector<int32_t> history = {-1, 6, 1000000, 2}, words = {77}, ends = {1}, end_ids = {99};
  SamplingRow row;
  row.history = history;
  row.repetition_penalty = 2;
  row.frequency_penalty = 1;
  row.no_repeat_ngram_size = 1;
  row.bad_words = words;
  row.bad_word_ends = ends;
  row.min_tokens = 10;
  row.end_ids = end_ids;
  EXPECT_EQ(ruled(kLogits, row), (std::vector<float>{1, -1, kBanned, -2, 0.5f, 3}));
}

TEST(LogitRules, NamesWhatDoesNotFit) {
  SamplingRow row;
  row.temperature = -1;
  EXPECT_EQ(error_of(ErrorCode::kInvalidArgument, [&] { sample_one(kLogits, row); }),
            "sample: row 0: temperature is -1, wanted >= 0");
  const std::vector<float> bias(3);
  row.temperature = 1;
  row.bias = bias;
  EXPECT_EQ(error_of(ErrorCode::kInvalidArgument, [&] { sample_one(kLogits, row); }),
            "sample: row 0: number of biases is 3, wanted the vocabulary's size or none");
  row.bias = {};
  row.prompt_length = 1;
  EXPECT_EQ(error_of(ErrorCode::kInvalidArgument, [&] { sample_one(kLogits, row); }),
            "sample: row 0: prompt_length is 1, wanted at most the history's length");
}

}  // namespace
}  // namespace inflight::test
