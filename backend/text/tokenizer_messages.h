#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "inflight_batcher/api/request.h"

namespace inflight::backend {

/// A request to the tokenizer's process (inflight/tokenizer_worker.py describes the messages).
class TokenizerRequest {
 public:
  explicit TokenizerRequest(char kind) : message_(1, kind) {}

  TokenizerRequest& number(int32_t value);
  TokenizerRequest& text(std::string_view text);
  TokenizerRequest& ids(std::span<const TokenId> ids);
  std::string take() { return std::move(message_); }

 private:
  std::string message_;
};

/// Lists of token ids from an answer.
class TokenizerAnswer {
 public:
  explicit TokenizerAnswer(std::string_view message) : rest_(message) {}

  /// The next list. Throws kInternal where the answer ends too early.
  std::vector<TokenId> ids();

 private:
  void read(void* data, size_t bytes);

  std::string_view rest_;
};

}  // namespace inflight::backend
