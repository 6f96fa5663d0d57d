#include "backend/live_request.h"

#include <utility>

#include "backend/error_text.h"
#include "backend/model.h"
#include "backend/model_instance.h"
#include "backend/request_releaser.h"

namespace inflight::backend {

LiveRequest::LiveRequest(ModelInstance& instance, TRITONBACKEND_Request* request)
    : instance_(instance), request_(request), statistics_(instance.handle()) {
  const char* id = nullptr;
  require_ok(TRITONBACKEND_RequestId(request, &id));
  id_ = id;
  require_ok(TRITONBACKEND_ResponseFactoryNew(&factory_, request));
}

void LiveRequest::start() {
  try {
    ParsedRequest parsed = parse_request(request_, instance_.model().config(), instance_.model().parameters());
    if (parsed.stop) return obey_stop_order();
    submit(std::move(parsed.rows));
  } catch (...) {
    const std::lock_guard lock(mutex_);
    finish_with_error(current_exception_as_error());
  }
}

void LiveRequest::obey_stop_order() {
  check(!id_.empty(), ErrorCode::kInvalidArgument, "Trying to stop a request but request ID is not provided");
  instance_.model().live_requests().stop(id_);
  const std::lock_guard lock(mutex_);
  finish_empty();
}

void LiveRequest::submit(std::vector<ParsedRow> rows) {
  std::vector<Request> requests;
  for (ParsedRow& row : rows) {
    forms_.push_back(std::move(row.form));
    requests.push_back(std::move(row.request));
  }
  open_rows_ = requests.size();
  instance_.model().live_requests().add(shared_from_this());
  for (size_t row = 0; row < requests.size(); ++row) submit_row(row, std::move(requests[row]));
  instance_.model().metrics().wake();  // after the submission, so that its first look finds something
}

void LiveRequest::submit_row(size_t row, Request request) {
  try {
    throw_if_failed();
    const auto id = instance_.executor().submit(std::move(request), [self = shared_from_this(), row](Result&& result) {
      self->deliver(row, std::move(result));
    });
    const std::lock_guard lock(mutex_);
    executor_ids_.push_back(id);
    if (cancelled_ && !finished_) instance_.executor().cancel(id);
  } catch (...) {
    const Error error = current_exception_as_error();
    Result refusal;
    refusal.sequence_final = refusal.request_final = refusal.failed = true;
    refusal.error_code = error.code();
    refusal.error = error.what();
    deliver(row, std::move(refusal));
  }
}

void LiveRequest::throw_if_failed() {
  const std::lock_guard lock(mutex_);
  if (failure_) throw *failure_;
}

void LiveRequest::cancel() {
  const std::lock_guard lock(mutex_);
  cancel_rows();
}

void LiveRequest::stop() {
  const std::lock_guard lock(mutex_);
  stopped_ = true;
  cancel_rows();
}

void LiveRequest::cancel_rows() {
  if (finished_ || cancelled_) return;
  cancelled_ = true;
  for (const RequestId id : executor_ids_) instance_.executor().cancel(id);
}

void LiveRequest::cancel_if_abandoned() {
  const std::lock_guard lock(mutex_);
  if (finished_ || cancelled_) return;
  bool abandoned = false;
  log_if_error(TRITONBACKEND_ResponseFactoryIsCancelled(factory_, &abandoned));
  if (abandoned) cancel_rows();
}

void LiveRequest::deliver(size_t row, Result&& result) {
  const std::lock_guard lock(mutex_);
  if (finished_) return;
  statistics_.observe(result);
  latencies_.observe(row, result, instance_.model().metrics().serving());
  if (result.sequence_final && !result.failed) instance_.model().metrics().observe_lengths(result);
  const bool is_last = result.request_final && open_rows_ == 1;
  if (result.failed) {
    record_failure(row, Error(result.error_code, result.error));
  } else if (!failure_) {
    try {
      send(row, result, is_last);
    } catch (...) {
      record_failure(row, current_exception_as_error());
    }
  }
  if (result.request_final) --open_rows_;
  if (open_rows_ > 0 || finished_) return;
  // An error in mid-stream would never reach a BLS model's iterator over the responses: a stop order ends normally.
  stopped_ && failure_->code() == ErrorCode::kCancelled ? finish_empty() : finish_with_error(*failure_);
}

void LiveRequest::send(size_t row, const Result& result, bool is_final) {
  TRITONBACKEND_Response* raw = nullptr;
  require_ok(TRITONBACKEND_ResponseNewFromFactory(&raw, factory_));
  ResponseHandle response(raw);
  write_outputs(raw, forms_[row], result);
  if (is_final) return finish(response.release(), nullptr);
  log_if_error(TRITONBACKEND_ResponseSend(response.release(), 0, nullptr));
  statistics_.report_response(factory_, nullptr, false);
}

void LiveRequest::record_failure(size_t row, Error error) {
  if (failure_) return;
  if (error.code() == ErrorCode::kInternal) log(LogLevel::kError, concat("a request failed: ", error.what()));
  failure_ = forms_.size() > 1 ? Error(error.code(), concat("row ", row, ": ", error.what())) : std::move(error);
  cancel_rows();
}

void LiveRequest::finish_with_error(const Error& error) {
  TRITONBACKEND_Response* response = nullptr;
  log_if_error(TRITONBACKEND_ResponseNewFromFactory(&response, factory_));
  const ErrorHandle handle(make_error(error.code(), error_text(request_, error)));
  finish(response, handle.get());
}

void LiveRequest::finish_empty() {
  TRITONBACKEND_Response* response = nullptr;
  log_if_error(TRITONBACKEND_ResponseNewFromFactory(&response, factory_));
  finish(response, nullptr);
}

void LiveRequest::finish(TRITONBACKEND_Response* response, TRITONSERVER_Error* error) {
  finished_ = true;
  // Everything is counted before the client can see the answer; the request must live for that.
  statistics_.report_response(factory_, error, true);
  statistics_.report_request(request_, error == nullptr);
  if (response != nullptr) {
    log_if_error(TRITONBACKEND_ResponseSend(response, kResponseFinal, error));
  } else {
    log_if_error(TRITONBACKEND_ResponseFactorySendFlags(factory_, kResponseFinal));
  }
  instance_.model().live_requests().remove(*this);
  instance_.on_finished();
  // Last: until it is released, the request keeps the model and the instance alive.
  RequestReleaser::get().release(std::exchange(request_, nullptr), std::exchange(factory_, nullptr));
}

}  // namespace inflight::backend
