#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "inflight_batcher/api/request.h"

namespace inflight {

/// A run of tokens as reuse tells it from others: the tokens, and for virtual ones the id of the table that they come
/// from. Borrowed.
struct BlockKey {
  std::span<const TokenId> tokens;
  std::span<const uint64_t> extra_ids;  // of the leading tokens; 0, and beyond the end: none

  BlockKey() = default;
  BlockKey(std::span<const TokenId> tokens, std::span<const uint64_t> extra_ids = {})
      : tokens(tokens), extra_ids(extra_ids.first(std::min(extra_ids.size(), tokens.size()))) {}
  BlockKey(const std::vector<TokenId>& tokens) : tokens(tokens) {}

  size_t size() const { return tokens.size(); }
  bool empty() const { return tokens.empty(); }
  uint64_t extra_id(size_t i) const { return i < extra_ids.size() ? extra_ids[i] : 0; }

  BlockKey subkey(size_t begin, size_t count) const {
    return {tokens.subspan(begin, count), extra_ids.subspan(std::min(begin, extra_ids.size()))};
  }
  BlockKey first(size_t count) const { return subkey(0, count); }
  BlockKey from(size_t begin) const { return subkey(begin, tokens.size() - begin); }
};

}  // namespace inflight
