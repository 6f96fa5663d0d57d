#include "backend/error_text.h"

#include <algorithm>
#include <iterator>
#include <string_view>

namespace inflight::backend {

namespace {

/// gRPC's names.
constexpr struct {
  ErrorCode code;
  const char* name;
} kNames[] = {
    {ErrorCode::kInternal, "INTERNAL"},
    {ErrorCode::kNotFound, "NOT_FOUND"},
    {ErrorCode::kInvalidArgument, "INVALID_ARGUMENT"},
    {ErrorCode::kUnavailable, "UNAVAILABLE"},
    {ErrorCode::kUnsupported, "UNIMPLEMENTED"},
    {ErrorCode::kAlreadyExists, "ALREADY_EXISTS"},
    {ErrorCode::kCancelled, "CANCELLED"},
};

bool wants_codes(TRITONBACKEND_Request* request) {
  uint32_t count = 0;
  require_ok(TRITONBACKEND_RequestParameterCount(request, &count));
  for (uint32_t i = 0; i < count; ++i) {
    const char* key = nullptr;
    ParameterType type{};
    const void* value = nullptr;
    require_ok(TRITONBACKEND_RequestParameter(request, i, &key, &type, &value));
    if (std::string_view(key) == "error_codes" && type == ParameterType::kBool) return *static_cast<const bool*>(value);
  }
  return false;
}

}  // namespace

std::string error_text(TRITONBACKEND_Request* request, const Error& error) {
  if (!wants_codes(request)) return error.what();
  const auto* found =
      std::find_if(std::begin(kNames), std::end(kNames), [&](const auto& it) { return it.code == error.code(); });
  return concat("[", found == std::end(kNames) ? "INTERNAL" : found->name, "] ", error.what());
}

}  // namespace inflight::backend
