#include "backend/text/utf8.h"

#include <algorithm>
#include <cstdint>

namespace inflight::backend {

namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

enum class Form { kComplete, kUnfinished, kMalformed };

struct Character {
  Form form;
  size_t bytes;  // malformed: as many as could have begun a character, at least one
};

/// What a first byte says: the length of its character, and the range of the second byte.
struct Lead {
  size_t length;  // 0: no character begins so
  uint8_t least = 0x80;
  uint8_t most = 0xBF;
};

Lead lead_of(uint8_t byte) {
  if (byte < 0x80) return {1};
  if (byte < 0xC2) return {0};
  if (byte < 0xE0) return {2};
  if (byte == 0xE0) return {3, 0xA0};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3};
  if (byte == 0xF0) return {4, 0x90};
  if (byte < 0xF4) return {4};
  return byte == 0xF4 ? Lead{4, 0x80, 0x8F} : Lead{0};
}

/// The first character of `text`, which is not empty.
Character first_character(std::string_view text) {
  const Lead lead = lead_of(static_cast<uint8_t>(text[0]));
  if (lead.length == 0) return {Form::kMalformed, 1};
  for (size_t i = 1; i < lead.length; ++i) {
    if (i == text.size()) return {Form::kUnfinished, i};
    const auto byte = static_cast<uint8_t>(text[i]);
    const bool fits = i == 1 ? byte >= lead.least && byte <= lead.most : (byte & 0xC0) == 0x80;
    if (!fits) return {Form::kMalformed, i};
  }
  return {Form::kComplete, lead.length};
}

}  // namespace

size_t find_malformed_utf8(std::string_view text) {
  for (size_t begin = 0; begin < text.size();) {
    const Character character = first_character(text.substr(begin));
    if (character.form != Form::kComplete) return begin;
    begin += character.bytes;
  }
  return std::string_view::npos;
}

void Utf8Stream::append(std::string_view bytes, std::string& text) {
  pending_ += bytes;
  size_t begin = 0;
  while (begin < pending_.size()) {
    const Character character = first_character(std::string_view(pending_).substr(begin));
    if (character.form == Form::kUnfinished) break;
    if (character.form == Form::kComplete) {
      text.append(pending_, begin, character.bytes);
    } else {
      replace(character.bytes, text);
    }
    begin += character.bytes;
  }
  pending_.erase(0, begin);
}

void Utf8Stream::finish(std::string& text) {
  if (!pending_.empty()) replace(pending_.size(), text);
  pending_.clear();
}

void Utf8Stream::replace(size_t bytes, std::string& text) const {
  const size_t count = replacing_ == Replacing::kBytes ? bytes : 1;
  for (size_t i = 0; i < count; ++i) text += kReplacement;
}

}  // namespace inflight::backend
