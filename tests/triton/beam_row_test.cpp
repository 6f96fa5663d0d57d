#include "backend/text/beam_row.h"

#include <gtest/gtest.h>

namespace inflight::backend {
namespace {

/// Tokens are letters; '^' is held back until the next token or the end.
class LetterStream : public TokenStream {
 public:
  void push(std::span<const TokenId> tokens, bool end, std::string& text) override {
    for (const TokenId token : tokens) {
      text += std::exchange(held_, "");
      (token == '^' ? held_ : text) += static_cast<char>(token);
    }
    if (end) text += held_;
  }

 private:
  std::string held_;
};

BeamRow row(TextRowForm form) {
  return {std::move(form), [] { return std::make_unique<LetterStream>(); }};
}

BeamResult beam(const std::string& letters, int prompt = 0) {
  BeamResult beam;
  beam.tokens.assign(letters.begin(), letters.end());
  beam.num_generated_tokens = static_cast<int>(letters.size()) - prompt;
  for (int i = 1; i <= beam.num_generated_tokens; ++i) beam.log_probs.push_back(static_cast<float>(-i));
  beam.generation_logits.assign(beam.num_generated_tokens * 2, 0.5f);
  beam.cum_log_prob = -100;
  return beam;
}

Result result(std::vector<BeamResult> beams, bool final) {
  Result result;
  result.beams = std::move(beams);
  result.sequence_final = result.request_final = final;
  if (final) result.finish_reason = FinishReason::kLength;
  return result;
}

std::vector<std::string> texts_of(BeamRow& row, Result& result) {
  std::vector<std::string> texts;
  EXPECT_TRUE(row.take(result, texts));
  EXPECT_EQ(row.ended(), result.sequence_final);
  return texts;
}

using Texts = std::vector<std::string>;

TEST(BeamRow, EveryResultHasTheWholeOfEachBeam) {
  BeamRow it = row({.streaming = true});
  Result first = result({beam("a^"), beam("b")}, false);
  EXPECT_EQ(texts_of(it, first), (Texts{"a", "b"}));
  Result last = result({beam("bc"), beam("a^")}, true);
  EXPECT_EQ(texts_of(it, last), (Texts{"bc", "a^"}));
  EXPECT_EQ(last.finish_reason, FinishReason::kLength);
}

TEST(BeamRow, AStopWordCutsItsBeam) {
  BeamRow it = row({.stop_words = {"bc"}});
  Result last = result({beam("abcde"), beam("axcde")}, true);
  EXPECT_EQ(texts_of(it, last), (Texts{"abc", "axcde"}));
  EXPECT_EQ(last.finish_reason, FinishReason::kStopWords);
  EXPECT_EQ(last.num_generated_tokens, 3);
  const BeamResult& best = last.beams[0];
  EXPECT_EQ(best.tokens.size(), 3u);
  EXPECT_EQ(best.log_probs, (std::vector<float>{-1, -2, -3}));
  EXPECT_EQ(best.cum_log_prob, -6);
  EXPECT_EQ(best.generation_logits.size(), 6u);
  EXPECT_EQ(last.beams[1].cum_log_prob, -100) << "no word in it: as the engine has it";
}

TEST(BeamRow, WhatMayBecomeAStopWordIsHeldBack) {
  BeamRow it = row({.streaming = true, .stop_words = {"bcd"}});
  Result first = result({beam("abc"), beam("xb")}, false);
  EXPECT_EQ(texts_of(it, first), (Texts{"a", "x"}));
  Result last = result({beam("abcd"), beam("xb")}, true);
  EXPECT_EQ(texts_of(it, last), (Texts{"abcd", "xb"}));
}

TEST(BeamRow, ThePromptStopsNothing) {
  BeamRow it = row({.stop_words = {"b"}});
  Result last = result({beam("abab", 2)}, true);
  EXPECT_EQ(texts_of(it, last), Texts{"abab"});
  EXPECT_EQ(last.beams[0].num_generated_tokens, 2);
  EXPECT_EQ(last.beams[0].cum_log_prob, -100) << "nothing lies behind the word";
}

TEST(BeamRow, StopWordsCountFromTheLeastLengthOn) {
  BeamRow it = row({.min_tokens = 3, .stop_words = {"a"}});
  Result last = result({beam("aaaa")}, true);
  EXPECT_EQ(texts_of(it, last), Texts{"aaa"});
}

TEST(BeamRow, BeamsWithoutATokenHaveEmptyTexts) {
  BeamRow it = row({.stop_words = {"a"}});
  Result last = result({beam("")}, true);
  EXPECT_EQ(texts_of(it, last), Texts{""});
}

}  // namespace
}  // namespace inflight::backend
