#pragma once

#include <memory>
#include <string>

#include "backend/triton_abi.h"
#include "inflight/error.h"

namespace inflight::backend {

/// Turns a returned error object into an exception, and frees it.
void require_ok(TRITONSERVER_Error* error);

/// For calls in places that cannot fail any more: logs the error, frees it.
void log_if_error(TRITONSERVER_Error* error) noexcept;

/// A new error object; the caller owns it.
TRITONSERVER_Error* make_error(ErrorCode code, const std::string& message) noexcept;

/// The exception in flight as an error object. Only inside a catch block.
TRITONSERVER_Error* current_error() noexcept;

/// The exception in flight as the project's own error. Only inside a catch block.
Error current_exception_as_error();

void log(LogLevel level, const std::string& message) noexcept;

/// Nanoseconds of the steady clock, the clock of Triton's statistics.
uint64_t now_ns();

/// The body of an entry point: nothing may cross the C interface, so every exception becomes an error object.
template <typename Body>
TRITONSERVER_Error* guarded(Body&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (...) {
    return current_error();
  }
}

struct ErrorDeleter {
  void operator()(TRITONSERVER_Error* error) const { TRITONSERVER_ErrorDelete(error); }
};
using ErrorHandle = std::unique_ptr<TRITONSERVER_Error, ErrorDeleter>;

struct ResponseDeleter {
  void operator()(TRITONBACKEND_Response* response) const { log_if_error(TRITONBACKEND_ResponseDelete(response)); }
};
using ResponseHandle = std::unique_ptr<TRITONBACKEND_Response, ResponseDeleter>;

}  // namespace inflight::backend
