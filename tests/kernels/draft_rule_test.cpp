#include "kernels/cpu/philox.h"
#include "tests/kernels/sampling_harness.h"

namespace inflight::test {
namespace {

constexpr int kDraws = 40000;
constexpr int kVocabulary = 11;
const std::vector<float> kTarget = {1.5f, -0.5f, 0.25f, 2.0f, 0.0f, -2.0f, 1.0f, 0.75f, -1.0f, 0.5f, 1.75f};
const std::vector<float> kDraft = {0.5f, 1.5f, 0.0f, 1.0f, -1.0f, 2.0f, 0.25f, 1.75f, -2.0f, -0.5f, 0.75f};

struct Verified {
  std::vector<int> tokens = std::vector<int>(kVocabulary);
  int taken = 0;
};

/// Drafts drawn from `draft` under `row` with seeds 0, 1, ..., and verified under the same seeds.
Verified verify(const SamplingRow& row, const std::vector<float>& target, const std::vector<float>& draft) {
  std::vector<SamplingRow> rows(kDraws, row);
  for (int i = 0; i < kDraws; ++i) rows[i].seed = i;
  const std::vector<int32_t> drafts = sample_rows(draft, rows).tokens;
  for (int i = 0; i < kDraws; ++i) {
    rows[i].draft_logits = draft;
    rows[i].draft_token = drafts[i];
  }
  Verified out;
  const std::vector<int32_t> tokens = sample_rows(target, rows).tokens;
  for (int i = 0; i < kDraws; ++i) {
    ++out.tokens.at(tokens[i]);
    out.taken += tokens[i] == drafts[i];
  }
  return out;
}

double overlap(const Values& p, const Values& q) {
  double sum = 0;
  for (size_t i = 0; i < p.size(); ++i) sum += std::min(p[i], q[i]);
  return sum;
}

/// What remains of the softmax by a plain draw of many tokens: the reference for filtered rows.
Values drawn(const std::vector<float>& logits, const SamplingRow& row) {
  const std::vector<int> counts = histogram(logits, row, 1000000);
  return Values(counts.begin(), counts.end());
}

TEST(DraftRule, WhatComesOutIsDistributedAsWithoutDrafts) {
  for (const float temperature : {0.5f, 1.0f, 2.0f}) {
    SamplingRow row;
    row.temperature = temperature;
    const Values p = softmax(kTarget, temperature), q = softmax(kDraft, temperature);
    const Verified found = verify(row, kTarget, kDraft);
    expect_distribution(found.tokens, p, concat("temperature ", temperature));
    EXPECT_NEAR(found.taken / double{kDraws}, overlap(p, q), 0.015) << "temperature " << temperature;
  }
}

TEST(DraftRule, FiltersAndRulesHoldForBothDistributions) {
  const std::vector<int32_t> history = {3, 7, 3, 1}, bad = {0}, bad_ends = {1};
  SamplingRow filtered, ruled;
  filtered.top_k = 6;
  filtered.top_p = 0.9f;
  filtered.min_p = 0.05f;
  ruled.history = history;
  ruled.prompt_length = 1;
  ruled.repetition_penalty = 1.4f;
  ruled.frequency_penalty = 0.5f;
  ruled.bad_words = bad;
  ruled.bad_word_ends = bad_ends;
  for (const SamplingRow& row : {filtered, ruled}) {
    Values p = drawn(kTarget, row);
    const Verified found = verify(row, kTarget, kDraft);
    for (int token = 0; token < kVocabulary; ++token)
      EXPECT_EQ(p[token] == 0, found.tokens[token] == 0) << "token " << token;
    // The reference has noise of its own, a twenty-fifth of the variance of what is tested.
    expect_distribution(found.tokens, p, row.top_k > 0 ? "filters" : "rules");
  }
}

TEST(DraftRule, EqualDistributionsTakeEveryDraft) { EXPECT_EQ(verify(SamplingRow(), kTarget, kTarget).taken, kDraws); }

TEST(DraftRule, AnImpossibleDraftIsNeverTaken) {
  std::vector<float> target = kTarget;
  SamplingRow row;
  row.top_k = 4;
  row.draft_logits = kDraft;
  row.draft_token = 5;  // the target's last
  std::vector<SamplingRow> rows(1000, row);
  for (int i = 0; i < 1000; ++i) rows[i].seed = i;
  for (const int32_t token : sample_rows(target, rows).tokens) EXPECT_NE(token, 5);
}

TEST(DraftRule, GreedyTakesTheHighestWhateverTheDraft) {
  SamplingRow row;
  row.temperature = 0;
  row.draft_logits = kDraft;
  for (row.draft_token = 0; row.draft_token < kVocabulary; ++row.draft_token)
    EXPECT_EQ(sample_one(kTarget, row), 3) << "draft " << row.draft_token;
}

TEST(DraftRule, AThresholdDecidesWithoutChance) {
  const Values p = softmax(kTarget), q = softmax(kDraft);
  for (const float threshold : {0.1f, 0.5f, 1.0f}) {
    for (int token = 0; token < kVocabulary; ++token) {
      SamplingRow row;
      row.draft_logits = kDraft;
      row.draft_token = token;
      row.draft_threshold = threshold;
      std::vector<SamplingRow> rows(200, row);
      for (int i = 0; i < 200; ++i) rows[i].seed = i;
      for (const int32_t found : sample_rows(kTarget, rows).tokens)
        EXPECT_EQ(found == token, p[token] >= threshold * q[token]) << "token " << token << " at " << threshold;
    }
  }
}

TEST(DraftRule, BadDraftLogitsAreNamed) {
  SamplingRow row;
  row.draft_logits = std::span(kDraft).first(4);
  row.draft_token = 1;
  EXPECT_THROW(sample_one(kTarget, row), Error);
  row.draft_logits = kDraft;
  row.draft_token = kVocabulary;
  EXPECT_THROW(sample_one(kTarget, row), Error);
}

}  // namespace
}  // namespace inflight::test
