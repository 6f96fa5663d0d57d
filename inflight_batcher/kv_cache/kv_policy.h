#pragma once

#include "inflight_batcher/api/retention.h"

namespace inflight {

/// What a request says about the KV blocks of its sequences.
struct KvPolicy {
  RetentionConfig retention;
  int prompt_tokens = 0;

  Retention retention_at(int position) const;

  /// Of a block that holds the tokens [begin, end).
  Retention retention_of(int begin, int end) const;
};

}  // namespace inflight
