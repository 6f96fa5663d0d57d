#pragma once

#include <memory>
#include <span>
#include <string>

#include "backend/text/token_table.h"
#include "backend/text/utf8.h"

namespace inflight::backend {

/// The tokens of one sequence to text, piece by piece.
class TokenStream {
 public:
  virtual ~TokenStream() = default;

  /// Appends the text that is now certain; with `end`, all the rest. The pieces of a sequence concatenate to exactly
  /// the tokenizer's decode of the whole.
  virtual void push(std::span<const TokenId> tokens, bool end, std::string& text) = 0;
};

/// Decodes by the table of tokens: in this process, with no more state than the bytes of an unfinished character.
class TableStream : public TokenStream {
 public:
  /// `table` has tokens and outlives the stream.
  TableStream(const TokenTable& table, bool skip_special);

  void push(std::span<const TokenId> tokens, bool end, std::string& text) override;

 private:
  void push_token(TokenId id, std::string& text);

  const TokenTable& table_;
  bool skip_special_;
  bool at_start_ = true;
  Utf8Stream characters_;
};

/// Whether the table has tokens, and decodes all its samples token by token as the tokenizer itself does.
bool is_proven(const TokenTable& table);

}  // namespace inflight::backend
