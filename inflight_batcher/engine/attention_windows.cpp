#include "inflight_batcher/engine/attention_windows.h"

#include <algorithm>

namespace inflight {

void limit_attention(Plan& plan, const KvCacheConfig& config) {
  for (const int window : config.attention_windows)
    check(window >= 1, ErrorCode::kInvalidArgument, "kv_cache.attention_windows holds ", window, ", wanted at least 1");
  check(config.sink_tokens >= 0, ErrorCode::kInvalidArgument, "kv_cache.sink_tokens is ", config.sink_tokens,
        ", wanted at least 0");
  for (size_t i = 0; i < plan.kv_layers.size(); ++i) {
    PlanKvLayer& layer = plan.kv_layers[i];
    layer.window_in_force = layer.window;
    if (!config.attention_windows.empty()) {
      const int limit = config.attention_windows[i % config.attention_windows.size()];
      layer.window_in_force = layer.window > 0 ? std::min(layer.window, limit) : limit;
    }
    // A window that no sequence outgrows hides nothing.
    if (layer.window_in_force >= plan.max_positions) layer.window_in_force = 0;
    layer.sinks = layer.window_in_force > 0 ? config.sink_tokens : 0;
  }
}

}  // namespace inflight
