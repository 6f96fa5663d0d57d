#include "backend/text/text_row.h"

#include <gtest/gtest.h>

namespace inflight::backend {
namespace {

/// Tokens are letters; the token 0 ends a sequence and has no text.
class LetterStream : public TokenStream {
 public:
  void push(std::span<const TokenId> tokens, bool, std::string& text) override {
    for (const TokenId token : tokens) text += static_cast<char>(token);
  }
};

TextRow row(TextRowForm form, int sequences = 1) {
  std::vector<std::unique_ptr<TokenStream>> streams;
  for (int i = 0; i < sequences; ++i) streams.push_back(std::make_unique<LetterStream>());
  return TextRow(std::move(form), std::move(streams));
}

/// The engine's result with these new tokens of a sequence, `count` in all so far.
Result piece(const std::string& letters, int count, int sequence = 0) {
  Result result;
  result.sequence_index = sequence;
  result.tokens.assign(letters.begin(), letters.end());
  result.log_probs.assign(letters.size(), -1.0f);
  result.num_generated_tokens = count;
  return result;
}

Result last(Result result, bool of_request = true) {
  result.sequence_final = true;
  result.request_final = of_request;
  result.finish_reason = FinishReason::kLength;
  return result;
}

TEST(TextRow, StreamsPieceByPiece) {
  TextRow it = row({.streaming = true});
  Result result = piece("a", 1);
  std::string text;
  EXPECT_TRUE(it.take(result, text));
  EXPECT_EQ(text, "a");
  EXPECT_FALSE(it.ended());
  result = last(piece("b", 2));
  text.clear();
  EXPECT_TRUE(it.take(result, text));
  EXPECT_EQ(text, "b");
  EXPECT_EQ(result.finish_reason, FinishReason::kLength);
  EXPECT_TRUE(it.ended());
}

TEST(TextRow, AStopWordIsTheEnd) {
  TextRow it = row({.streaming = true, .stop_words = {"bc"}});
  std::string text;
  Result result = piece("ab", 2);
  EXPECT_TRUE(it.take(result, text));
  EXPECT_EQ(text, "a");
  result = piece("cd", 4);
  text.clear();
  EXPECT_TRUE(it.take(result, text));
  EXPECT_EQ(text, "bc");
  EXPECT_EQ(result.finish_reason, FinishReason::kStopWords);
  EXPECT_TRUE(result.sequence_final && result.request_final);
  EXPECT_TRUE(it.ended());
}

TEST(TextRow, HeldBackTextComesWithTheEngineEnd) {
  TextRow it = row({.streaming = true, .stop_words = {"bc"}});
  std::string text;
  Result result = last(piece("ab", 2));
  EXPECT_TRUE(it.take(result, text));
  EXPECT_EQ(text, "ab");
  EXPECT_EQ(result.finish_reason, FinishReason::kLength);
}

TEST(TextRow, OneSequenceGoesOnWhenAnotherHasEnded) {
  TextRow it = row({.streaming = true, .stop_words = {"x"}}, 2);
  std::string text;
  Result result = piece("x", 1, 0);
  EXPECT_TRUE(it.take(result, text));
  EXPECT_TRUE(result.sequence_final);
  EXPECT_FALSE(result.request_final);
  result = piece("y", 2, 0);
  EXPECT_FALSE(it.take(result, text)) << "nothing follows a stop word";
  result = last(piece("y", 1, 1), false);  // the engine is still at work on the first
  EXPECT_TRUE(it.take(result, text));
  EXPECT_TRUE(result.request_final);
  EXPECT_TRUE(it.ended());
}

TEST(TextRow, PiecesAreGatheredWhenNotStreaming) {
  TextRow it = row({.prompt = {'p', 'q'}, .stop_words = {"q", "c"}});
  std::string text;
  Result result = piece("ab", 2);
  EXPECT_FALSE(it.take(result, text));
  EXPECT_EQ(text, "");
  result = piece("c", 3);
  EXPECT_TRUE(it.take(result, text));
  EXPECT_EQ(text, "pqabc") << "the prompt is in the output, but stops nothing";
  EXPECT_EQ(std::string(result.tokens.begin(), result.tokens.end()), "pqabc");
  EXPECT_EQ(result.log_probs.size(), 3u);
  EXPECT_EQ(result.finish_reason, FinishReason::kStopWords);
}

TEST(TextRow, StopWordsCountFromTheLeastLengthOn) {
  TextRow it = row({.streaming = true, .min_tokens = 3, .stop_words = {"a"}});
  std::string text;
  for (int count = 1; count <= 2; ++count) {
    Result result = piece("a", count);
    EXPECT_TRUE(it.take(result, text));
    EXPECT_FALSE(result.sequence_final);
  }
  Result result = piece("a", 3);
  EXPECT_TRUE(it.take(result, text));
  EXPECT_TRUE(result.sequence_final);
  EXPECT_EQ(text, "aaa");
}

}  // namespace
}  // namespace inflight::backend
