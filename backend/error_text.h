#pragma once

#include <string>

#include "backend/triton.h"

namespace inflight::backend {

/// The text of a request's error. The server's gRPC streams carry an error's text but not its code; a request with the
/// parameter `error_codes` = true gets the code in front: "[INVALID_ARGUMENT] input ...".
std::string error_text(TRITONBACKEND_Request* request, const Error& error);

}  // namespace inflight::backend
