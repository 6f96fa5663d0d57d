#include "backend/text/tokenizer_messages.h"

#include <cstring>

#include "inflight/error.h"

namespace inflight::backend {

TokenizerRequest& TokenizerRequest::number(int32_t value) {
  message_.append(reinterpret_cast<const char*>(&value), sizeof(value));
  return *this;
}

TokenizerRequest& TokenizerRequest::text(std::string_view text) {
  number(static_cast<int32_t>(text.size()));
  message_ += text;
  return *this;
}

TokenizerRequest& TokenizerRequest::ids(std::span<const TokenId> ids) {
  number(static_cast<int32_t>(ids.size()));
  message_.append(reinterpret_cast<const char*>(ids.data()), ids.size_bytes());
  return *this;
}

std::vector<TokenId> TokenizerAnswer::ids() {
  int32_t count = 0;
  read(&count, sizeof(count));
  check(count >= 0 && static_cast<size_t>(count) <= rest_.size() / sizeof(TokenId), ErrorCode::kInternal,
        "the tokenizer's answer has ", rest_.size(), " bytes for ", count, " tokens");
  std::vector<TokenId> ids(static_cast<size_t>(count));
  read(ids.data(), ids.size() * sizeof(TokenId));
  return ids;
}

void TokenizerAnswer::read(void* data, size_t bytes) {
  check(bytes <= rest_.size(), ErrorCode::kInternal, "the tokenizer's answer ends ", bytes - rest_.size(),
        " bytes too early");
  if (bytes > 0) std::memcpy(data, rest_.data(), bytes);
  rest_.remove_prefix(bytes);
}

}  // namespace inflight::backend
