#pragma once

#include <algorithm>

#include "backend/triton_abi.h"
#include "inflight_batcher/api/result.h"

namespace inflight::backend {

/// The stamps of one request and their report to the server's statistics. Queue time runs to the first step that
/// computes the request, compute time to its last token.
class RequestStatistics {
 public:
  explicit RequestStatistics(TRITONBACKEND_ModelInstance* instance);

  /// Takes the times of a result in.
  void observe(const Result& result);

  /// Reports the first response; later ones are counted by the report of the last, so that the server's table has two
  /// rows and not one for each token.
  void report_response(TRITONBACKEND_ResponseFactory* factory, TRITONSERVER_Error* error, bool is_final);

  /// Reports the request; to be called while it is not yet released.
  void report_request(TRITONBACKEND_Request* request, bool success);

 private:
  uint64_t compute_start() const { return first_scheduled_ns_ != 0 ? first_scheduled_ns_ : arrival_ns_; }
  uint64_t compute_end() const { return std::max(compute_start(), last_token_ns_); }

  TRITONBACKEND_ModelInstance* instance_;
  uint64_t arrival_ns_;
  uint64_t first_scheduled_ns_ = 0;  // 0: never
  uint64_t last_token_ns_ = 0;
  bool first_response_reported_ = false;
};

}  // namespace inflight::backend
