#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace inflight {

/// How hard a KV block is kept once no sequence holds it: blocks of a lower priority give way first, of the same
/// priority the least recently used.
struct Retention {
  static constexpr int kDefaultPriority = 35;
  static constexpr int kMaxPriority = 100;

  int priority = kDefaultPriority;     // 0 to kMaxPriority
  std::optional<int64_t> duration_ms;  // counts from the moment when nobody holds the block; then it has the default

  bool operator==(const Retention&) const = default;
};

/// Retention of the prompt's tokens [begin, end).
struct RetentionRange {
  int begin = 0;
  std::optional<int> end;  // absent: to the end of the prompt
  Retention retention;
};

/// A request's say on its KV blocks. A block gets the highest priority that one of its tokens has; tokens of the prompt
/// outside all ranges have the default.
struct RetentionConfig {
  std::vector<RetentionRange> ranges;
  Retention decode;  // of generated tokens

  bool is_default() const { return ranges.empty() && decode == Retention(); }
};

}  // namespace inflight
