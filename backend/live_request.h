#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/outputs.h"
#include "backend/request_parser.h"
#include "backend/request_statistics.h"
#include "backend/serving_metrics.h"
#include "backend/text/text_row.h"
#include "backend/triton.h"
#include "inflight_batcher/api/executor.h"

namespace inflight::backend {

class ModelInstance;

/// A request of the server from Execute to its final response: owns the request object and its response factory, sends
/// the responses with exactly one final flag, reports the statistics, and gives both back.
///
/// Thread-safe: results come from the executor's response threads, cancellation from the monitor, submission and its
/// failures from Execute or, with texts, from a thread of the tokenizer.
class LiveRequest : public std::enable_shared_from_this<LiveRequest> {
 public:
  /// Takes the request over, unless it throws: then the request is still the caller's.
  LiveRequest(ModelInstance& instance, TRITONBACKEND_Request* request);
  LiveRequest(const LiveRequest&) = delete;
  LiveRequest& operator=(const LiveRequest&) = delete;

  const std::string& id() const { return id_; }

  /// Validates and enqueues. Never throws: what fails is the request's answer.
  void start();

  /// Answers with an error what has not been started.
  void refuse(const Error& error);

  /// A stop order: the request ends at the next step, with an empty final response, or with the tokens so far where it
  /// does not stream, not with an error. A finished request is left alone. Waits for nothing.
  void stop();

  /// Ends the request at the next step if the client has gone or has cancelled, or after a stop order. While a response
  /// is being sent that is left for the next time: the server may never come back from it.
  void look_after();

 private:
  void stop_others();
  void obey_stop_order();
  void open(std::vector<ParsedRow>& rows);
  void tokenize(std::vector<ParsedRow> rows);
  void submit_tokenized(std::vector<ParsedRow>& rows, const std::string& tokens, const Error* error);
  void submit(std::vector<ParsedRow> rows);
  RowRequest defaults() const;
  void borrow_draft_engine(const ParsedRow& row);
  Executor& executor() const;
  void submit_row(size_t row, ParsedRow parsed);
  void submit_whole(size_t row, Request request);
  void submit_drafted(ParsedRow parsed);
  Executor::Callback deliverer(size_t row);
  void deliver(size_t row, Result&& result);
  bool is_stopped_answer(size_t row, const Result& result) const;
  bool take(size_t row, Result& result, std::vector<std::string>& texts);
  bool has_ended(size_t row) const { return !texts_.empty() && texts_[row]->ended(); }
  void send(size_t row, const Result& result, std::span<const std::string> texts, bool is_final);
  void end_in_engine(size_t row, int sequence_index);
  void record_failure(size_t row, Error error);
  void wake_metrics();
  void throw_if_failed();
  void cancel_rows();
  void finish_with_error(const Error& error);
  void finish_empty();
  void finish(TRITONBACKEND_Response* response, TRITONSERVER_Error* error);

  ModelInstance& instance_;
  std::shared_ptr<ModelInstance> engine_;  // whose executor answers; another model's is kept until this ends
  std::shared_ptr<ModelInstance> draft_engine_;
  TRITONBACKEND_Request* request_;
  TRITONBACKEND_ResponseFactory* factory_ = nullptr;
  std::string id_;

  std::atomic<bool> stop_ordered_ = false;
  std::mutex mutex_;                 // guards what follows; held while a response is built and sent
  std::vector<ResponseForm> forms_;  // one for each row
  /// One for each row of a text model's request, once it is tokenized.
  std::vector<std::unique_ptr<TextAnswer>> texts_;
  std::vector<RequestId> executor_ids_;  // of the rows submitted so far
  std::shared_ptr<DraftedAnswer> drafted_;
  size_t open_rows_ = 0;
  std::optional<Error> failure_;  // the first one: it ends the other rows, and is the answer when they have ended
  bool cancelled_ = false;
  bool stopped_ = false;
  bool finished_ = false;
  RequestStatistics statistics_;
  LatencyObserver latencies_;
};

}  // namespace inflight::backend
