#include "backend/triton.h"

#include <chrono>
#include <utility>

namespace inflight::backend {

namespace {

struct CodePair {
  ErrorCode ours;
  TritonCode triton;
};

constexpr CodePair kCodes[] = {
    {ErrorCode::kInternal, TritonCode::kInternal},          {ErrorCode::kNotFound, TritonCode::kNotFound},
    {ErrorCode::kInvalidArgument, TritonCode::kInvalidArg}, {ErrorCode::kUnavailable, TritonCode::kUnavailable},
    {ErrorCode::kUnsupported, TritonCode::kUnsupported},    {ErrorCode::kAlreadyExists, TritonCode::kAlreadyExists},
    {ErrorCode::kCancelled, TritonCode::kCancelled},
};

TritonCode to_triton(ErrorCode code) {
  for (const auto& pair : kCodes) {
    if (pair.ours == code) return pair.triton;
  }
  return TritonCode::kInternal;
}

ErrorCode from_triton(TritonCode code) {
  for (const auto& pair : kCodes) {
    if (pair.triton == code) return pair.ours;
  }
  return ErrorCode::kInternal;
}

// The part of a path behind its last slash (the macro for it begins with gcc 12).
constexpr const char* file_name(const char* path) {
  const char* name = path;
  for (; *path != '\0'; ++path)
    if (*path == '/') name = path + 1;
  return name;
}

}  // namespace

void require_ok(TRITONSERVER_Error* error) {
  if (error == nullptr) return;
  const ErrorHandle handle(error);
  throw Error(from_triton(TRITONSERVER_ErrorCode(error)), TRITONSERVER_ErrorMessage(error));
}

void log_if_error(TRITONSERVER_Error* error) noexcept {
  if (error == nullptr) return;
  const ErrorHandle handle(error);
  const ErrorHandle log_error(
      TRITONSERVER_LogMessage(LogLevel::kError, file_name(__FILE__), __LINE__, TRITONSERVER_ErrorMessage(error)));
}

TRITONSERVER_Error* make_error(ErrorCode code, const std::string& message) noexcept {
  return TRITONSERVER_ErrorNew(to_triton(code), message.c_str());
}

TRITONSERVER_Error* current_error() noexcept {
  try {
    throw;
  } catch (const Error& error) {
    return TRITONSERVER_ErrorNew(to_triton(error.code()), error.what());
  } catch (const std::exception& error) {
    return TRITONSERVER_ErrorNew(TritonCode::kInternal, error.what());
  } catch (...) {
    return TRITONSERVER_ErrorNew(TritonCode::kInternal, "an exception of an unknown type");
  }
}

Error current_exception_as_error() {
  try {
    throw;
  } catch (const Error& error) {
    return error;
  } catch (const std::exception& error) {
    return Error(ErrorCode::kInternal, error.what());
  } catch (...) {
    return Error(ErrorCode::kInternal, "an exception of an unknown type");
  }
}

void log(LogLevel level, const std::string& message) noexcept {
  const ErrorHandle error(TRITONSERVER_LogMessage(level, "inflight", 0, message.c_str()));
}

uint64_t now_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
}

}  // namespace inflight::backend
