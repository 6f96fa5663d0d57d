#include "backend/text/worker_stream.h"

#include <algorithm>

#include "backend/text/tokenizer_messages.h"

namespace inflight::backend {

namespace {

/// As inflight/detokenizer.py has it: the longest run of tokens that one text position can span.
constexpr size_t kWindow = 16;

}  // namespace

void WorkerStream::push(std::span<const TokenId> tokens, bool end, std::string& text) {
  if (tokens.empty() && !end) return;
  text += pool_.ask_and_wait(TokenizerRequest('D').number(skip_special_).number(end).ids(window_).ids(tokens).take());
  window_.insert(window_.end(), tokens.begin(), tokens.end());
  window_.erase(window_.begin(), window_.end() - static_cast<std::ptrdiff_t>(std::min(window_.size(), kWindow)));
}

}  // namespace inflight::backend
