#include "inflight_batcher/kv_cache/kv_policy.h"

namespace inflight {

namespace {

/// The higher priority; of equal ones that which lasts longer.
Retention stronger(const Retention& a, const Retention& b) {
  if (a.priority != b.priority) return a.priority > b.priority ? a : b;
  if (!a.duration_ms || !b.duration_ms) return a.duration_ms ? b : a;
  return *a.duration_ms > *b.duration_ms ? a : b;
}

template <typename Each>
Retention strongest(const Each& each) {
  std::optional<Retention> found;
  each([&](const Retention& retention) { found = found ? stronger(*found, retention) : retention; });
  return found.value_or(Retention());
}

}  // namespace

Retention KvPolicy::retention_at(int position) const {
  if (position >= prompt_tokens) return retention.decode;
  return strongest([&](const auto& consider) {
    for (const RetentionRange& range : retention.ranges)
      if (position >= range.begin && (!range.end || position < *range.end)) consider(range.retention);
  });
}

Retention KvPolicy::retention_of(int begin, int end) const {
  return strongest([&](const auto& consider) {
    for (int position = begin; position < end; ++position) consider(retention_at(position));
  });
}

}  // namespace inflight
