#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "inflight_batcher/api/retention.h"

namespace inflight {

/// What a request says about the KV blocks of its sequences.
struct KvPolicy {
  RetentionConfig retention;
  int prompt_tokens = 0;
  std::vector<uint64_t> extra_ids;  // by prompt token, part of the blocks' keys; 0: none; may be empty
  int shareable_tokens = std::numeric_limits<int>::max();  // leading tokens that are found, and found by others

  Retention retention_at(int position) const;

  /// Of a block that holds the tokens [begin, end).
  Retention retention_of(int begin, int end) const;

  std::span<const uint64_t> extra_ids_from(size_t position) const {
    return std::span(extra_ids).subspan(std::min(position, extra_ids.size()));
  }
};

}  // namespace inflight
