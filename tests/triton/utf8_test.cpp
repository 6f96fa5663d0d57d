#include "backend/text/utf8.h"

#include <gtest/gtest.h>

namespace inflight::backend {
namespace {

using Replacing = Utf8Stream::Replacing;

const std::string kMark = "\xEF\xBF\xBD";  // U+FFFD

/// The text of `bytes`, given in pieces of `size`.
std::string streamed(std::string_view bytes, size_t size, Replacing replacing) {
  Utf8Stream stream(replacing);
  std::string text;
  for (size_t begin = 0; begin < bytes.size(); begin += size) stream.append(bytes.substr(begin, size), text);
  stream.finish(text);
  return text;
}

TEST(Utf8, CharactersOfEveryLengthSurviveEveryCut) {
  const std::string text = "a\u00e9\u20ac\U0001F600\uFFFD\u0800\uD7FF\uE000\U0010FFFF.";
  for (size_t size = 1; size <= text.size(); ++size) {
    EXPECT_EQ(streamed(text, size, Replacing::kRuns), text);
    EXPECT_EQ(streamed(text, size, Replacing::kBytes), text);
  }
}

TEST(Utf8, NothingIncompleteIsSent) {
  Utf8Stream stream(Replacing::kRuns);
  std::string text;
  for (const char byte : std::string("\xF0\x9F\x98")) stream.append({&byte, 1}, text);
  EXPECT_EQ(text, "");
  stream.append("\x80!", text);
  EXPECT_EQ(text, "\U0001F600!");
}

struct Malformed {
  std::string bytes;
  size_t runs;   // marks, one for each run that could have begun a character
  size_t count;  // marks, one for each byte
};

TEST(Utf8, MalformedBytesAreMarked) {
  const Malformed cases[] = {
      {"\x80", 1, 1},         {"\xFF\xFE", 2, 2},         {"\xC0\xAF", 2, 2},          // never part of a character
      {"\xE0\x9F\xBF", 3, 3}, {"\xED\xA0\x80", 3, 3},     {"\xF4\x90\x80\x80", 4, 4},  // too long, surrogate, too large
      {"\xE4\xB8", 1, 2},     {"\xF0\x9F\x98", 1, 3},     {"\xC3", 1, 1},              // cut off
      {"\xE4\xC3", 2, 2},     {"\xF0\x9F\xF0\x9F", 2, 4}, {"\xF5\x80", 2, 2},
  };
  for (const Malformed& it : cases) {
    for (size_t size = 1; size <= it.bytes.size(); ++size) {
      std::string runs;
      std::string bytes;
      for (size_t i = 0; i < it.runs; ++i) runs += kMark;
      for (size_t i = 0; i < it.count; ++i) bytes += kMark;
      EXPECT_EQ(streamed("<" + it.bytes + ">", size, Replacing::kRuns), "<" + runs + ">");
      EXPECT_EQ(streamed("<" + it.bytes + ">", size, Replacing::kBytes), "<" + bytes + ">");
    }
    EXPECT_EQ(find_malformed_utf8("ab" + it.bytes), 2u);
  }
}

TEST(Utf8, FindsNothingInText) {
  EXPECT_EQ(find_malformed_utf8(""), std::string_view::npos);
  EXPECT_EQ(find_malformed_utf8("a\u00e9\u20ac\U0001F600"), std::string_view::npos);
}

}  // namespace
}  // namespace inflight::backend
