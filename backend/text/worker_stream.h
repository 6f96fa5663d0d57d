#pragma once

#include <vector>

#include "backend/text/detokenizer.h"
#include "backend/text/tokenizer_pool.h"

namespace inflight::backend {

/// Decodes by asking a tokenizer process for every piece, for decoders that no table can follow: slower, and the caller
/// waits meanwhile.
class WorkerStream : public TokenStream {
 public:
  /// `pool` outlives the stream.
  WorkerStream(TokenizerPool& pool, bool skip_special) : pool_(pool), skip_special_(skip_special) {}

  /// Throws what has become of the process.
  void push(std::span<const TokenId> tokens, bool end, std::string& text) override;

 private:
  TokenizerPool& pool_;
  bool skip_special_;
  std::vector<TokenId> window_;  // the last tokens, from which the process tells where the new text begins
};

}  // namespace inflight::backend
