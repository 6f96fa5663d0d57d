#include "backend/request_statistics.h"

#include <memory>

#include "backend/triton.h"

namespace inflight::backend {

namespace {

using ResponseStatistics = TRITONBACKEND_ModelInstanceResponseStatistics;

struct ResponseStatisticsDeleter {
  void operator()(ResponseStatistics* it) const {
    log_if_error(TRITONBACKEND_ModelInstanceResponseStatisticsDelete(it));
  }
};

}  // namespace

RequestStatistics::RequestStatistics(TRITONBACKEND_ModelInstance* instance)
    : instance_(instance), arrival_ns_(now_ns()) {}

void RequestStatistics::observe(const Result& result) {
  const auto scheduled = static_cast<uint64_t>(result.perf.first_scheduled_time_ns);
  if (scheduled != 0 && (first_scheduled_ns_ == 0 || scheduled < first_scheduled_ns_)) first_scheduled_ns_ = scheduled;
  last_token_ns_ = std::max(last_token_ns_, static_cast<uint64_t>(result.perf.last_token_time_ns));
}

void RequestStatistics::report_response(TRITONBACKEND_ResponseFactory* factory, TRITONSERVER_Error* error,
                                        bool is_final) {
  if (TRITONBACKEND_ModelInstanceReportResponseStatistics == nullptr) return;
  if (first_response_reported_ && !is_final) return;
  first_response_reported_ = true;
  ResponseStatistics* statistics = nullptr;
  log_if_error(TRITONBACKEND_ModelInstanceResponseStatisticsNew(&statistics));
  if (statistics == nullptr) return;
  const std::unique_ptr<ResponseStatistics, ResponseStatisticsDeleter> owner(statistics);
  log_if_error(TRITONBACKEND_ModelInstanceResponseStatisticsSetModelInstance(statistics, instance_));
  log_if_error(TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseFactory(statistics, factory));
  log_if_error(TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseStart(statistics, compute_start()));
  if (error == nullptr) {
    log_if_error(TRITONBACKEND_ModelInstanceResponseStatisticsSetComputeOutputStart(statistics, compute_end()));
  } else {
    log_if_error(TRITONBACKEND_ModelInstanceResponseStatisticsSetError(statistics, error));
  }
  log_if_error(TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseEnd(statistics, now_ns()));
  log_if_error(TRITONBACKEND_ModelInstanceReportResponseStatistics(statistics));
}

void RequestStatistics::report_request(TRITONBACKEND_Request* request, bool success) {
  const uint64_t end = std::max(compute_end(), now_ns());
  log_if_error(TRITONBACKEND_ModelInstanceReportStatistics(instance_, request, success, compute_start(),
                                                           compute_start(), compute_end(), end));
  if (!success) return;
  log_if_error(TRITONBACKEND_ModelInstanceReportBatchStatistics(instance_, 1, compute_start(), compute_start(),
                                                                compute_end(), end));
}

}  // namespace inflight::backend
