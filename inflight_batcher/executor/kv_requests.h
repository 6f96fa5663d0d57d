#pragma once

#include "inflight_batcher/kv_cache/kv_cache_manager.h"

namespace inflight {

/// Refuses priorities, durations and ranges that mean nothing (kInvalidArgument, with what was found and wanted).
void check_retention(const RetentionConfig& retention);

/// What the KV cache gets to know of a request; null where it says nothing.
KvCacheManager::PolicyPtr kv_policy_of(const Request& request, int vocabulary);

}  // namespace inflight
