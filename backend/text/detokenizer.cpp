#include "backend/text/detokenizer.h"

#include <algorithm>
#include <utility>

namespace inflight::backend {

TableStream::TableStream(const TokenTable& table, bool skip_special)
    : table_(table),
      skip_special_(skip_special),
      characters_(table.joins_bytes ? Utf8Stream::Replacing::kRuns : Utf8Stream::Replacing::kBytes) {}

void TableStream::push(std::span<const TokenId> tokens, bool end, std::string& text) {
  for (const TokenId id : tokens) push_token(id, text);
  if (end) characters_.finish(text);
}

void TableStream::push_token(TokenId id, std::string& text) {
  if (id < 0 || static_cast<size_t>(id) >= table_.tokens.size()) return;
  const TokenText& token = table_.tokens[static_cast<size_t>(id)];
  if (token.kind == TokenText::Kind::kUnknown || (skip_special_ && token.special)) return;
  const std::string* bytes = &token.bytes;
  if (std::exchange(at_start_, false)) {
    const auto first = table_.first_texts.find(id);
    if (first != table_.first_texts.end()) bytes = &first->second;
  }
  if (table_.joins_bytes || token.kind == TokenText::Kind::kByte) return characters_.append(*bytes, text);
  characters_.finish(text);
  text += *bytes;
}

bool is_proven(const TokenTable& table) {
  const auto agrees = [&](const DecodedSample& sample) {
    TableStream stream(table, sample.skip_special);
    std::string text;
    for (const TokenId id : sample.ids) stream.push({&id, 1}, false, text);
    stream.push({}, true, text);
    return text == sample.text;
  };
  return !table.tokens.empty() && std::all_of(table.samples.begin(), table.samples.end(), agrees);
}

}  // namespace inflight::backend
