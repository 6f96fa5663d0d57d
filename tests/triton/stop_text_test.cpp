#include "backend/text/stop_text.h"

#include <gtest/gtest.h>

#include <random>

namespace inflight::backend {
namespace {

struct Sent {
  std::string text;
  bool ended = false;
  std::vector<std::string> pieces;
};

Sent sent(const std::vector<std::string>& words, const std::vector<std::string>& pieces) {
  StopText stop(words);
  Sent all;
  for (const std::string& piece : pieces) {
    std::string out;
    all.ended = stop.push(piece, true, out);
    all.text += out;
    all.pieces.push_back(out);
    if (all.ended) return all;
  }
  stop.finish(all.text);
  return all;
}

TEST(StopText, EndsWithTheWord) {
  const Sent all = sent({"END"}, {"one END two"});
  EXPECT_TRUE(all.ended);
  EXPECT_EQ(all.text, "one END");
}

TEST(StopText, HoldsBackWhatMayBecomeAWord) {
  const Sent all = sent({"END"}, {"a E", "N", "D of"});
  EXPECT_EQ(all.pieces, (std::vector<std::string>{"a ", "", "END"}));
  EXPECT_TRUE(all.ended);
}

TEST(StopText, LetsGoWhatBecameNoWord) {
  const Sent all = sent({"END", "NIL"}, {"a E", "N", "I", "GMA"});
  EXPECT_EQ(all.pieces, (std::vector<std::string>{"a ", "", "E", "NIGMA"}));
  EXPECT_FALSE(all.ended);
}

TEST(StopText, TheEndOfASequenceLetsEverythingGo) {
  const Sent all = sent({"END"}, {"a EN"});
  EXPECT_EQ(all.text, "a EN");
  EXPECT_FALSE(all.ended);
}

TEST(StopText, TheFirstWordToEndCounts) {
  EXPECT_EQ(sent({"abcd", "c"}, {"xabcd"}).text, "xabc");
  EXPECT_EQ(sent({"abcd", "c"}, {"xab", "cd"}).text, "xabc");
  EXPECT_EQ(sent({"aab"}, {"aa", "ab"}).text, "aaab");
}

TEST(StopText, WithoutWordsEverythingPasses) {
  EXPECT_EQ(sent({}, {"a", "b"}).pieces, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(sent({"", ""}, {"a", "b"}).pieces, (std::vector<std::string>{"a", "b"}));
}

TEST(StopText, WordsThatEndTooEarlyDoNotCount) {
  StopText stop({"ab", "b"});
  std::string out;
  EXPECT_FALSE(stop.push("a ab", false, out));
  EXPECT_FALSE(stop.push("a", true, out));
  EXPECT_TRUE(stop.push("bc", true, out));
  EXPECT_EQ(out, "a abab");
}

TEST(StopText, AWordMayBeginWhereNoneCounts) {
  StopText stop({"ab"});
  std::string out;
  EXPECT_FALSE(stop.push("xa", false, out));
  EXPECT_TRUE(stop.push("b", true, out));
  EXPECT_EQ(out, "xab");
}

/// The definition: up to the end of the first occurrence to end.
std::string expected(const std::vector<std::string>& words, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    for (const std::string& word : words) {
      if (!word.empty() && text.substr(0, end).ends_with(word)) return text.substr(0, end);
    }
  }
  return text;
}

TEST(StopText, DoesNotDependOnThePieces) {
  std::mt19937 random(3);
  const auto below = [&](size_t limit) { return random() % limit; };
  const auto word = [&](size_t longest) {
    std::string letters(1 + below(longest), 'a');
    for (char& letter : letters) letter = static_cast<char>('a' + below(3));
    return letters;
  };
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> words;
    for (size_t i = 0; i < 1 + below(3); ++i) words.push_back(word(5));
    const std::string text = word(40);
    std::vector<std::string> pieces;
    for (size_t begin = 0; begin < text.size(); begin += pieces.back().size())
      pieces.push_back(text.substr(begin, 1 + below(6)));
    EXPECT_EQ(sent(words, pieces).text, expected(words, text)) << text;
  }
}

}  // namespace
}  // namespace inflight::backend
