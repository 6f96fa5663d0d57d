#include "inflight_batcher/executor/kv_requests.h"

#include "inflight/error.h"
#include "inflight_batcher/executor/prompt_tuning.h"

namespace inflight {

namespace {

void check_one(const std::string& what, const Retention& retention) {
  check(retention.priority >= 0 && retention.priority <= Retention::kMaxPriority, ErrorCode::kInvalidArgument, what,
        ": priority is ", retention.priority, ", wanted 0 to ", Retention::kMaxPriority);
  check(!retention.duration_ms || *retention.duration_ms >= 0, ErrorCode::kInvalidArgument, what, ": duration is ",
        retention.duration_ms.value_or(0), " ms, wanted at least 0, or none");
}

}  // namespace

void check_retention(const RetentionConfig& retention) {
  for (size_t i = 0; i < retention.ranges.size(); ++i) {
    const RetentionRange& range = retention.ranges[i];
    const std::string what = concat("retention range ", i);
    check(range.begin >= 0, ErrorCode::kInvalidArgument, what, " starts at ", range.begin, ", wanted at least 0");
    check(!range.end || *range.end > range.begin, ErrorCode::kInvalidArgument, what, " ends at ", range.end.value_or(0),
          ", wanted more than its start ", range.begin);
    check_one(what, range.retention);
  }
  check_one("retention of generated tokens", retention.decode);
}

KvCacheManager::PolicyPtr kv_policy_of(const Request& request, int vocabulary) {
  if (request.retention.is_default() && !request.prompt_tuning.table && request.prompt_tuning.extra_ids.empty())
    return nullptr;
  auto policy = std::make_shared<KvPolicy>();
  policy->retention = request.retention;
  policy->prompt_tokens = static_cast<int>(request.input_ids.size()) - request.continued_tokens;
  policy->extra_ids = request.prompt_tuning.extra_ids;
  policy->shareable_tokens = shareable_tokens_of(request, vocabulary);
  return policy;
}

}  // namespace inflight
