#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "inflight_batcher/api/retention.h"

namespace inflight::backend {

/// The tensors retention_* of one row: what one range has at one place of each list.
struct RetentionTensors {
  std::vector<int32_t> starts, ends, priorities;  // -1 as an end: to the end of the prompt
  std::vector<int32_t> durations_ms;              // empty or as long; -1: for ever
  std::optional<int32_t> decode_priority, decode_duration_ms;
};

/// Throws kInvalidArgument where the lists differ in length (all are named) or a value means nothing.
RetentionConfig retention_of(const RetentionTensors& tensors);

}  // namespace inflight::backend
