#include "backend/text/detokenizer.h"

#include "tests/triton/harness.h"

namespace inflight::backend {
namespace {

TokenText text_of(const std::string& text, bool special = false) { return {TokenText::Kind::kText, special, text}; }
TokenText byte_of(char byte) { return {TokenText::Kind::kByte, false, std::string(1, byte)}; }

/// Characters over any tokens: a, the three bytes of a euro sign in two tokens, an end token.
TokenTable byte_level() {
  TokenTable table;
  table.joins_bytes = true;
  table.tokens = {text_of("a"), text_of("\xE2\x82"), text_of("\xAC!"), text_of("<end>", true), {}};
  return table;
}

/// Texts with a space before each word but the first, and two bytes.
TokenTable separate() {
  TokenTable table;
  table.tokens = {text_of(" a"), text_of(" b"), byte_of('\xC3'), byte_of('\xA9'), text_of("<end>", true)};
  table.first_texts = {{0, "a"}, {1, "b"}};
  return table;
}

std::string streamed(const TokenTable& table, const std::vector<TokenId>& ids, bool skip_special = true) {
  TableStream stream(table, skip_special);
  std::string text;
  for (const TokenId id : ids) stream.push({&id, 1}, false, text);
  stream.push({}, true, text);
  return text;
}

TEST(Detokenizer, BytesJoinOverTokens) {
  EXPECT_EQ(streamed(byte_level(), {0, 1, 2, 0}), "a\u20ac!a");
  EXPECT_EQ(streamed(byte_level(), {1, 0, 1}), "\uFFFDa\uFFFD");
}

TEST(Detokenizer, SpecialTokensAreSkippedOrShown) {
  EXPECT_EQ(streamed(byte_level(), {0, 3, 0}), "aa");
  EXPECT_EQ(streamed(byte_level(), {0, 3, 0}, false), "a<end>a");
  EXPECT_EQ(streamed(byte_level(), {1, 3, 2}), "\u20ac!") << "a skipped token interrupts no character";
}

TEST(Detokenizer, UnknownIdsAddNothing) { EXPECT_EQ(streamed(byte_level(), {0, 4, -1, 99, 0}), "aa"); }

TEST(Detokenizer, TheFirstTokenMayDiffer) {
  EXPECT_EQ(streamed(separate(), {0, 1, 0}), "a b a");
  EXPECT_EQ(streamed(separate(), {4, 1, 0}), "b a") << "a skipped token is not the first";
  EXPECT_EQ(streamed(separate(), {4, 1}, false), "<end> b");
}

TEST(Detokenizer, BytesJoinAmongThemselves) {
  EXPECT_EQ(streamed(separate(), {0, 2, 3, 0}), "a\u00e9 a");
  EXPECT_EQ(streamed(separate(), {2, 0, 3}), "\uFFFD a\uFFFD");
}

TEST(Detokenizer, ATableIsProvenByItsSamples) {
  TokenTable table = separate();
  table.samples = {{{0, 1}, true, "a b"}, {{4, 2, 3}, false, "<end>\u00e9"}};
  EXPECT_TRUE(is_proven(table));
  table.samples.push_back({{0, 1}, true, " a b"});
  EXPECT_FALSE(is_proven(table));
  EXPECT_FALSE(is_proven(TokenTable())) << "no tokens, no proof";
}

TEST(TokenTable, IsRead) {
  const TokenTable table = parse_token_table(R"({
    "tokens": ["61", null, "e282", ""], "byte_tokens": [2], "special": [0], "first": {"0": "c3a9"}, "joins_bytes": true,
    "end_id": 3, "pad_id": null, "decoder": "Test", "samples": [{"ids": [0], "skip_special": false, "text": "a"}]})");
  ASSERT_EQ(table.tokens.size(), 4u);
  EXPECT_EQ(table.tokens[0].bytes, "a");
  EXPECT_TRUE(table.tokens[0].special);
  EXPECT_EQ(table.tokens[1].kind, TokenText::Kind::kUnknown);
  EXPECT_EQ(table.tokens[2].kind, TokenText::Kind::kByte);
  EXPECT_EQ(table.tokens[2].bytes, "\xE2\x82");
  EXPECT_EQ(table.tokens[3].kind, TokenText::Kind::kText);
  EXPECT_EQ(table.first_texts.at(0), "\u00e9");
  EXPECT_EQ(table.end_id, 3);
  EXPECT_EQ(table.pad_id, std::nullopt);
  ASSERT_EQ(table.samples.size(), 1u);
  EXPECT_FALSE(table.samples[0].skip_special);
}

TEST(TokenTable, WhatIsNoTableIsRefused) {
  expect_error(ErrorCode::kInternal, "sent no table of its tokens", [] { parse_token_table("{}"); });
  expect_error(ErrorCode::kInternal, "sent no table of its tokens", [] { parse_token_table("nonsense"); });
}

}  // namespace
}  // namespace inflight::backend
