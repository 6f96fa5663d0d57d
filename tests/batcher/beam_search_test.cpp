#include "inflight_batcher/sampling/beam_search.h"

#include <gtest/gtest.h>

#include <cmath>

#include "inflight/error.h"

namespace inflight {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

/// Tokens with their log probs, best first.
struct Row {
  std::vector<TokenId> tokens;
  std::vector<float> log_probs;
};

class BeamSearchTest : public testing::Test {
 protected:
  void start(int width, int max_tokens = 100) {
    sampling_.beam_width = width;
    search_.emplace(BeamSearch::Rules{sampling_, max_tokens, ends_, stop_words_});
  }

  bool advance(const std::vector<Row>& rows) {
    std::vector<BeamSearch::Candidates> candidates;
    for (const Row& row : rows) candidates.push_back({row.tokens, row.log_probs, nullptr});
    return search_->advance(candidates);
  }

  std::vector<std::pair<int, TokenId>> choices() const {
    std::vector<std::pair<int, TokenId>> out;
    for (const auto& choice : search_->choices()) out.emplace_back(choice.parent, choice.token);
    return out;
  }

  std::vector<std::vector<TokenId>> best() const {
    std::vector<std::vector<TokenId>> out;
    for (const auto& hypothesis : search_->best()) out.push_back(hypothesis.tokens);
    return out;
  }

  using Choices = std::vector<std::pair<int, TokenId>>;
  using Tokens = std::vector<std::vector<TokenId>>;
  SamplingConfig sampling_;
  std::vector<TokenId> ends_ = {0};
  std::vector<std::vector<TokenId>> stop_words_;
  std::optional<BeamSearch> search_;
};

TEST_F(BeamSearchTest, TheBestSumsGoOn) {
  start(2);
  EXPECT_TRUE(advance({{{5, 6, 7}, {-1, -2, -3}}}));
  EXPECT_EQ(choices(), (Choices{{0, 5}, {0, 6}}));
  EXPECT_TRUE(advance({{{1, 2, 3}, {-3, -4, -5}}, {{4, 5, 6}, {-0.5f, -0.6f, -9}}}));
  EXPECT_EQ(choices(), (Choices{{1, 4}, {1, 5}}));
  EXPECT_EQ(best(), (Tokens{{6, 4}, {6, 5}}));
  EXPECT_FLOAT_EQ(static_cast<float>(search_->best()[1].sum), -2.6f);
}

TEST_F(BeamSearchTest, OnlyAmongTheBestMayABeamFinish) {
  start(2);
  EXPECT_TRUE(advance({{{5, 6, 0}, {-1, -2, -3}}}));  // the end is third
  EXPECT_EQ(best(), (Tokens{{5}, {6}}));
  EXPECT_TRUE(advance({{{0, 1, 2}, {-0.1f, -3, -4}}, {{1, 2, 0}, {-1, -5, -6}}}));
  EXPECT_EQ(choices(), (Choices{{1, 1}, {0, 1}}));
  EXPECT_EQ(best()[0], std::vector<TokenId>{5});  // finished, without its end id
  EXPECT_EQ(search_->best()[0].finish_reason, FinishReason::kEndId);
}

TEST_F(BeamSearchTest, EarlyStoppingEndsWhenAllAreFinished) {
  start(2);
  advance({{{5, 6, 7}, {-1, -1.5f, -3}}});
  EXPECT_FALSE(advance({{{0, 1, 2}, {-0.1f, -3, -4}}, {{0, 2, 3}, {-0.1f, -5, -6}}}));
  EXPECT_TRUE(search_->has_ended());
  EXPECT_EQ(best(), (Tokens{{5}, {6}}));
}

TEST_F(BeamSearchTest, TheOthersGoOnWhileARunningBeamMayWin) {
  for (const int mode : {0, 2}) {
    sampling_.early_stopping = mode;
    sampling_.length_penalty = 1;
    start(1, 100);
    // Finished: -3 / 2. Running: -3.2 over 2 tokens now, over 100 tokens at best.
    EXPECT_TRUE(advance({{{5}, {-0.5f}}}));
    EXPECT_EQ(advance({{{0, 1}, {-2.5f, -2.7f}}}), mode == 2);
  }
}

TEST_F(BeamSearchTest, NoModeGoesOnForWhatCannotWin) {
  for (const int mode : {0, 1, 2}) {
    sampling_.early_stopping = mode;
    start(1);
    EXPECT_TRUE(advance({{{5}, {-1}}}));
    EXPECT_FALSE(advance({{{0, 1}, {-0.1f, -9}}})) << mode;
  }
}

TEST_F(BeamSearchTest, MaxTokensFinishesTheBest) {
  start(2, 2);
  EXPECT_TRUE(advance({{{5, 6, 7}, {-1, -2, -3}}}));
  EXPECT_FALSE(advance({{{1, 2, 3}, {-1, -5, -6}}, {{1, 2, 3}, {-1, -5, -6}}}));
  EXPECT_EQ(best(), (Tokens{{5, 1}, {6, 1}}));
  EXPECT_EQ(search_->best()[0].finish_reason, FinishReason::kLength);
}

TEST_F(BeamSearchTest, StopWordsAcrossStepsFinishAndStay) {
  stop_words_ = {{5, 1}};
  start(1);
  EXPECT_TRUE(advance({{{5, 6}, {-1, -2}}}));
  EXPECT_FALSE(advance({{{1, 2}, {-1, -2}}}));
  EXPECT_EQ(best(), (Tokens{{5, 1}}));
  EXPECT_EQ(search_->best()[0].finish_reason, FinishReason::kStopWords);
}

TEST_F(BeamSearchTest, DiversityFavoursOtherParents) {
  for (const float rate : {0.0f, 1.0f}) {
    sampling_.beam_search_diversity_rate = rate;
    start(2);
    advance({{{5, 6, 7}, {-1, -2, -3}}});
    advance({{{1, 2, 3}, {-1, -1.5f, -5}}, {{4, 5, 6}, {-1, -5, -6}}});
    EXPECT_EQ(choices(), rate > 0 ? (Choices{{0, 1}, {1, 4}}) : (Choices{{0, 1}, {0, 2}}));
    EXPECT_DOUBLE_EQ(search_->best()[0].sum, -2);  // in the choice alone
  }
}

TEST_F(BeamSearchTest, FewerCandidatesMakeFewerBeams) {
  start(4);
  EXPECT_TRUE(advance({{{3, 2, -1, -1, -1}, {-1, -2, kNone, kNone, kNone}}}));
  EXPECT_EQ(choices().size(), 2u);
  EXPECT_TRUE(advance({{{3, 2, 0}, {-1, -2, kNone}}, {{3, 2, 0}, {-1, -2, kNone}}}));
  EXPECT_EQ(choices().size(), 4u);
}

TEST_F(BeamSearchTest, WhatIsBannedIsTakenOnlyWithoutAnythingElse) {
  start(2);
  EXPECT_TRUE(advance({{{3, 2}, {kNone, kNone}}}));
  EXPECT_EQ(choices(), (Choices{{0, 3}}));
}

TEST_F(BeamSearchTest, CandidatesCoverEveryEnding) {
  ends_ = {0, 9};
  stop_words_ = {{5, 1}, {1}, {7}, {9}};
  start(4);
  EXPECT_EQ(search_->candidates_wanted(256), 4 + 4);  // 0, 9, 1, 7
  EXPECT_EQ(search_->candidates_wanted(6), 6);
}

TEST_F(BeamSearchTest, MisuseIsNamed) {
  start(2);
  EXPECT_THROW(advance({}), Error);
  EXPECT_THROW(advance({{{-1}, {kNone}}}), Error);
}

}  // namespace
}  // namespace inflight
