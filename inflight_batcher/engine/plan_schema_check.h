#pragma once

#include <nlohmann/json_fwd.hpp>

namespace inflight {

/// Checks a document against the plan's JSON Schema. Throws Error(kInvalidArgument) naming the first offending place.
void check_plan_schema(const nlohmann::json& document);

}  // namespace inflight
