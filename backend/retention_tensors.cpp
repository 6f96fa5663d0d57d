#include "backend/retention_tensors.h"

#include "inflight/error.h"

namespace inflight::backend {

namespace {

std::optional<int64_t> duration_of(const char* input, int32_t duration_ms) {
  check(duration_ms >= -1, ErrorCode::kInvalidArgument, "input ", input, " is ", duration_ms,
        "; wanted 0 or more, or -1 for no end");
  return duration_ms < 0 ? std::nullopt : std::optional<int64_t>(duration_ms);
}

int priority_of(const char* input, int32_t priority) {
  check(priority >= 0 && priority <= Retention::kMaxPriority, ErrorCode::kInvalidArgument, "input ", input, " is ",
        priority, "; wanted 0 to ", Retention::kMaxPriority);
  return priority;
}

void check_lengths(const RetentionTensors& tensors) {
  const size_t count = tensors.starts.size();
  const bool durations_fit = tensors.durations_ms.empty() || tensors.durations_ms.size() == count;
  check(tensors.ends.size() == count && tensors.priorities.size() == count && durations_fit,
        ErrorCode::kInvalidArgument, "inputs retention_token_range_starts, _ends, _priorities and _durations_ms have ",
        count, ", ", tensors.ends.size(), ", ", tensors.priorities.size(), " and ", tensors.durations_ms.size(),
        " values; wanted equally many (no durations: for ever)");
}

RetentionRange range_of(const RetentionTensors& tensors, size_t i) {
  const int32_t start = tensors.starts[i], end = tensors.ends[i];
  check(start >= 0, ErrorCode::kInvalidArgument, "input retention_token_range_starts is ", start, "; wanted 0 or more");
  check(end == -1 || end > start, ErrorCode::kInvalidArgument, "input retention_token_range_ends is ", end,
        "; wanted more than the start ", start, ", or -1 for the end of the prompt");
  RetentionRange range;
  range.begin = start;
  if (end >= 0) range.end = end;
  range.retention.priority = priority_of("retention_token_range_priorities", tensors.priorities[i]);
  if (!tensors.durations_ms.empty())
    range.retention.duration_ms = duration_of("retention_token_range_durations_ms", tensors.durations_ms[i]);
  return range;
}

}  // namespace

RetentionConfig retention_of(const RetentionTensors& tensors) {
  check_lengths(tensors);
  RetentionConfig config;
  for (size_t i = 0; i < tensors.starts.size(); ++i) config.ranges.push_back(range_of(tensors, i));
  if (tensors.decode_priority)
    config.decode.priority = priority_of("retention_decode_priority", *tensors.decode_priority);
  if (tensors.decode_duration_ms)
    config.decode.duration_ms = duration_of("retention_decode_duration_ms", *tensors.decode_duration_ms);
  return config;
}

}  // namespace inflight::backend
