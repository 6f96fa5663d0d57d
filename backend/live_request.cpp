#include "backend/live_request.h"

#include <utility>

#include "backend/engine_instances.h"
#include "backend/error_text.h"
#include "backend/model.h"
#include "backend/model_instance.h"
#include "backend/request_releaser.h"

namespace inflight::backend {

namespace {

/// The time to tokenize counts; none left ends the request at its first step.
void shorten_timeout(Request& request, uint64_t passed_ns) {
  const std::chrono::microseconds passed(passed_ns / 1000);
  if (request.timeout.count() > 0) request.timeout = std::max(std::chrono::microseconds(1), request.timeout - passed);
}

}  // namespace

LiveRequest::LiveRequest(ModelInstance& instance, TRITONBACKEND_Request* request)
    : instance_(instance),
      engine_(std::shared_ptr<void>(), &instance),  // which holds nothing: the instance knows of this request
      request_(request),
      statistics_(instance.handle()) {
  const char* id = nullptr;
  require_ok(TRITONBACKEND_RequestId(request, &id));
  id_ = id;
  require_ok(TRITONBACKEND_ResponseFactoryNew(&factory_, request));
}

void LiveRequest::start() {
  try {
    Model& model = instance_.model();
    if (!model.config().has_engine()) engine_ = EngineInstances::get().borrow(model.engine_name());
    ParsedRequest parsed = parse_request(request_, model.config(), engine_->model().parameters(), defaults());
    if (parsed.stop) return stop_others();
    if (parsed.rows.front().drafting.num_draft_tokens > 0) borrow_draft_engine(parsed.rows.front());
    open(parsed.rows);
    model.texts() == nullptr ? submit(std::move(parsed.rows)) : tokenize(std::move(parsed.rows));
  } catch (...) {
    const std::lock_guard lock(mutex_);
    if (!finished_) finish_with_error(current_exception_as_error());
  }
}

void LiveRequest::refuse(const Error& error) {
  const std::lock_guard lock(mutex_);
  finish_with_error(error);
}

/// What rows start from.
RowRequest LiveRequest::defaults() const {
  RowRequest row;
  row.request.output.exclude_input = engine_->model().parameters().exclude_input_in_output;
  if (const TextModel* texts = instance_.model().texts()) row.request.end_id = texts->end_id();
  return row;
}

void LiveRequest::borrow_draft_engine(const ParsedRow& row) {
  const std::string& name = instance_.model().draft_engine_name();
  check(!name.empty(), ErrorCode::kInvalidArgument, "num_draft_tokens is ", row.drafting.num_draft_tokens,
        ", but parameter tensorrt_llm_draft_model_name names no model");
  draft_engine_ = EngineInstances::get().borrow(name);
}

void LiveRequest::stop_others() {
  check(!id_.empty(), ErrorCode::kInvalidArgument, "Trying to stop a request but request ID is not provided");
  {
    const std::lock_guard lock(mutex_);
    finish_empty();  // first: clients take the last answer for that of the stopped request
  }
  instance_.model().live_requests().stop(id_);
}

/// From here on it can be cancelled.
void LiveRequest::open(std::vector<ParsedRow>& rows) {
  for (const ParsedRow& row : rows) forms_.push_back(row.form);
  open_rows_ = rows.size();
  instance_.model().live_requests().add(shared_from_this());
}

void LiveRequest::tokenize(std::vector<ParsedRow> rows) {
  instance_.hold();  // until the tokenizer's thread has submitted the rows: that may outlast the request
  try {
    auto shared = std::make_shared<std::vector<ParsedRow>>(std::move(rows));
    auto submit = [self = shared_from_this(), shared, asked = now_ns()](std::string&& tokens, const Error* error) {
      for (ParsedRow& row : *shared) shorten_timeout(row.request, now_ns() - asked);
      self->submit_tokenized(*shared, tokens, error);
      self->instance_.on_finished();
    };
    instance_.model().texts()->tokenize(*shared, std::move(submit));
  } catch (...) {
    instance_.on_finished();
    throw;
  }
}

void LiveRequest::submit_tokenized(std::vector<ParsedRow>& rows, const std::string& tokens, const Error* error) {
  try {
    if (error != nullptr) throw *error;
    TextModel& model = *instance_.model().texts();
    model.take_tokens(tokens, rows, executor().model().vocabulary_size);
    {
      const std::lock_guard lock(mutex_);
      check(!cancelled_, ErrorCode::kCancelled, "the request was cancelled");
      for (ParsedRow& row : rows) texts_.push_back(model.open_row(row));
    }
    submit(std::move(rows));
  } catch (...) {
    const std::lock_guard lock(mutex_);
    stopped_ ? finish_empty() : finish_with_error(current_exception_as_error());
  }
}

void LiveRequest::submit(std::vector<ParsedRow> rows) {
  for (size_t row = 0; row < rows.size(); ++row) submit_row(row, std::move(rows[row]));
  wake_metrics();  // after the submission, so that their first look finds something
}

void LiveRequest::submit_row(size_t row, ParsedRow parsed) {
  try {
    throw_if_failed();
    const bool drafted = parsed.drafting.num_draft_tokens > 0;
    drafted ? submit_drafted(std::move(parsed)) : submit_whole(row, std::move(parsed.request));
  } catch (...) {
    const Error error = current_exception_as_error();
    Result refusal;
    refusal.sequence_final = refusal.request_final = refusal.failed = true;
    refusal.error_code = error.code();
    refusal.error = error.what();
    deliver(row, std::move(refusal));
  }
}

Executor& LiveRequest::executor() const { return engine_->executor(); }

Executor::Callback LiveRequest::deliverer(size_t row) {
  return [self = shared_from_this(), row](Result&& result) { self->deliver(row, std::move(result)); };
}

void LiveRequest::submit_whole(size_t row, Request request) {
  const RequestId id = executor().submit(std::move(request), deliverer(row));
  const std::lock_guard lock(mutex_);
  executor_ids_.push_back(id);
  if (cancelled_ || finished_ || has_ended(row)) executor().cancel(id);
}

/// Of the only row.
void LiveRequest::submit_drafted(ParsedRow parsed) {
  auto drafted = DraftedAnswer::submit(executor(), draft_engine_->executor(), std::move(parsed.request),
                                       parsed.drafting, deliverer(0));
  const std::lock_guard lock(mutex_);
  if (cancelled_ || finished_ || has_ended(0)) drafted->cancel();
  if (!finished_) drafted_ = std::move(drafted);
}

void LiveRequest::wake_metrics() {
  engine_->model().metrics().wake();
  if (draft_engine_ != nullptr) draft_engine_->model().metrics().wake();
}

void LiveRequest::throw_if_failed() {
  const std::lock_guard lock(mutex_);
  if (failure_) throw *failure_;
}

void LiveRequest::stop() {
  stop_ordered_ = true;
  look_after();
}

void LiveRequest::obey_stop_order() {
  if (!stop_ordered_) return;
  stopped_ = true;
  cancel_rows();
}

void LiveRequest::cancel_rows() {
  if (finished_ || cancelled_) return;
  cancelled_ = true;
  for (const RequestId id : executor_ids_) executor().cancel(id);
  if (drafted_ != nullptr) drafted_->cancel();
}

void LiveRequest::look_after() {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock || finished_) return;
  obey_stop_order();
  if (cancelled_) return;
  bool abandoned = false;
  log_if_error(TRITONBACKEND_ResponseFactoryIsCancelled(factory_, &abandoned));
  if (abandoned) cancel_rows();
}

void LiveRequest::deliver(size_t row, Result&& result) {
  const std::lock_guard lock(mutex_);
  if (finished_ || has_ended(row)) return;
  obey_stop_order();
  if (draft_engine_ != nullptr) wake_metrics();  // a round has ended: each model rests while the other is at work
  statistics_.observe(result);
  latencies_.observe(row, result, engine_->model().metrics().serving());
  try {
    std::vector<std::string> texts;
    if (take(row, result, texts)) {
      if (result.sequence_final && !result.failed) engine_->model().metrics().observe_lengths(result);
      send(row, result, texts, result.request_final && open_rows_ == 1);
    }
  } catch (...) {
    record_failure(row, current_exception_as_error());
  }
  if (result.request_final) --open_rows_;
  if (open_rows_ > 0 || finished_) return;
  // An error in mid-stream would never reach a BLS model's iterator over the responses: a stop order ends normally.
  stopped_ && failure_->code() == ErrorCode::kCancelled ? finish_empty() : finish_with_error(*failure_);
}

/// A stop order leaves a request that does not stream the tokens that it has.
bool LiveRequest::is_stopped_answer(size_t row, const Result& result) const {
  return stopped_ && result.error_code == ErrorCode::kCancelled && !forms_[row].streaming;
}

/// Whether there is something to send. A text model's result becomes what its text makes of it.
bool LiveRequest::take(size_t row, Result& result, std::vector<std::string>& texts) {
  TextAnswer* answer = texts_.empty() ? nullptr : texts_[row].get();
  const int sequence = result.sequence_index;
  const bool engine_goes_on = !result.sequence_final;
  if (answer != nullptr && answer->has_ended(sequence)) {
    if (engine_goes_on) end_in_engine(row, sequence);
    return false;
  }
  if (result.failed && !is_stopped_answer(row, result)) record_failure(row, Error(result.error_code, result.error));
  if (failure_) return false;
  if (answer == nullptr) return true;
  const bool to_send = answer->take(result, texts);
  if (engine_goes_on && answer->has_ended(sequence)) end_in_engine(row, sequence);
  return to_send;
}

/// A stop word has ended the sequence. If the row's id is not known yet, the next result of it asks again.
void LiveRequest::end_in_engine(size_t row, int sequence_index) {
  if (row < executor_ids_.size()) executor().cancel(executor_ids_[row], sequence_index);
  if (drafted_ != nullptr) drafted_->cancel();
}

void LiveRequest::send(size_t row, const Result& result, std::span<const std::string> texts, bool is_final) {
  TRITONBACKEND_Response* raw = nullptr;
  require_ok(TRITONBACKEND_ResponseNewFromFactory(&raw, factory_));
  ResponseHandle response(raw);
  write_outputs(raw, forms_[row], result, texts);
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
  drafted_.reset();  // it holds this
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
