#pragma once

#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "backend/text/utf8.h"
#include "inflight_batcher/api/request.h"

namespace inflight::backend {

/// What one token id adds to a text.
struct TokenText {
  enum class Kind { kUnknown, kText, kByte };  // kByte: one byte of a character that has no token of its own

  Kind kind = Kind::kUnknown;
  bool special = false;
  std::string bytes;
};

/// A sequence of ids and its text, by the tokenizer's own decoder.
struct DecodedSample {
  std::vector<TokenId> ids;
  bool skip_special = true;
  std::string text;
};

/// What decoding needs of a tokenizer, exported by its process when a model loads (inflight/token_table.py).
struct TokenTable {
  std::vector<TokenText> tokens;  // by id; empty: the decoder is of a kind that only its own library can follow
  bool joins_bytes = false;       // characters may spread over any tokens (byte-level), not just over kByte tokens
  std::unordered_map<TokenId, std::string> first_texts;  // of tokens that differ at the start of a text
  std::optional<TokenId> end_id;
  std::optional<TokenId> pad_id;
  std::vector<DecodedSample> samples;  // to prove the table by
  std::string decoder;                 // its name, for the log
};

/// Throws kInternal for what is no table.
TokenTable parse_token_table(const std::string& json);

}  // namespace inflight::backend
