#pragma once

#include <string>
#include <string_view>

namespace inflight::backend {

/// Where a text stops being UTF-8 (RFC 3629): the index of the first byte that is no part of a character, or npos.
size_t find_malformed_utf8(std::string_view text);

/// Bytes that come in pieces, to text in whole characters: the beginning of a character is held back until its end
/// comes.
class Utf8Stream {
 public:
  /// How bytes that are no part of a character are shown: one U+FFFD for the longest run that could have begun a
  /// character (the Unicode standard's "maximal subpart"), or one for each byte (as SentencePiece does).
  enum class Replacing { kRuns, kBytes };

  explicit Utf8Stream(Replacing replacing) : replacing_(replacing) {}

  void append(std::string_view bytes, std::string& text);

  /// Nothing follows that could complete a character.
  void finish(std::string& text);

 private:
  void replace(size_t bytes, std::string& text) const;

  Replacing replacing_;
  std::string pending_;  // the beginning of a character, at most 3 bytes between two calls
};

}  // namespace inflight::backend
