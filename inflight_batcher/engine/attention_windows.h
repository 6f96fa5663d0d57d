#pragma once

#include <string>

#include "inflight_batcher/api/executor_config.h"
#include "inflight_batcher/engine/plan.h"

namespace inflight {

/// Narrows the plan's attention to the configured windows, cycled over the layers, with attention sinks (Xiao et al.
/// 2023, "Efficient Streaming Language Models with Attention Sinks"). A layer that has a narrower window keeps it.
/// Throws Error: kInvalidArgument for a window below 1 or negative sinks.
void limit_attention(Plan& plan, const KvCacheConfig& config);

}  // namespace inflight
