#include "backend/word_list.h"

#include "tests/triton/harness.h"

namespace inflight::backend {
namespace {

using Words = std::vector<std::vector<TokenId>>;

TEST(WordList, ReadsWordsOfSeveralTokens) {
  EXPECT_EQ(parse_word_list("w", {5, 6, 7, 8, 1, 4, -1, -1}), (Words{{5}, {6, 7, 8}}));
}

TEST(WordList, IgnoresTokensAfterTheLastWord) {
  EXPECT_EQ(parse_word_list("w", {5, 6, 0, 2, -1, -1}), (Words{{5, 6}}));
}

TEST(WordList, IsEmptyWithoutOffsets) {
  EXPECT_EQ(parse_word_list("w", {}), Words{});
  EXPECT_EQ(parse_word_list("w", {0, -1}), Words{});
}

TEST(WordList, RefusesBrokenLists) {
  const struct {
    std::vector<int32_t> values;
    std::string text;
  } kCases[] = {
      {{1, 2, 3}, "input w has 3 values; wanted an even number"},
      {{1, 2, 3, -1}, "input w has the end offset 3; wanted at most the number of tokens, 2"},
      {{1, 2, 3, 2, 1, -1}, "input w has the end offset 1 after 2; wanted rising offsets"},
      {{1, 2, 3, 2, 2, -1}, "input w has the end offset 2 after 2; wanted rising offsets"},
      {{1, 2, 0, -1}, "input w has the end offset 0 after 0; wanted rising offsets"},
      {{1, 2, -2, -1}, "input w has the end offset -2 after 0; wanted rising offsets"},
      {{1, 2, 3, -1, 2, -1}, "input w has end offsets after the first -1; wanted -1 to the end"},
  };
  for (const auto& it : kCases) {
    expect_error(ErrorCode::kInvalidArgument, it.text, [&] { parse_word_list("w", it.values); });
  }
}

}  // namespace
}  // namespace inflight::backend
