#include "inflight_batcher/executor/response_queue.h"

#include <iterator>

#include "inflight/error.h"
#include "inflight_batcher/executor/insist.h"

namespace inflight {

namespace {

void send_failure(RequestState& request, Result&& result) {
  result.failed = true;
  result.error_code = ErrorCode::kInternal;
  insist([&] { result.error = request.callback_failure; });
  try {
    request.callback(std::move(result));
  } catch (...) {
    // Whoever would hear of it has just been told.
  }
}

}  // namespace

ResponseQueue::ResponseQueue(std::function<void(RequestId, const std::string&)> end_request)
    : end_request_(std::move(end_request)), thread_([this] { loop(); }) {}

void ResponseQueue::stop() {
  if (!thread_.joinable()) return;
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void ResponseQueue::push(std::vector<Delivery>& deliveries) {
  if (deliveries.empty()) return;
  {
    std::lock_guard lock(mutex_);
    if (queue_.empty())
      queue_.swap(deliveries);
    else
      queue_.insert(queue_.end(), std::make_move_iterator(deliveries.begin()),
                    std::make_move_iterator(deliveries.end()));
  }
  deliveries.clear();
  wake_.notify_one();
}

double ResponseQueue::delivery_seconds() const {
  const int64_t began = delivery_began_ns_;
  return began == 0 ? 0.0 : static_cast<double>(steady_ns() - began) * 1e-9;
}

void ResponseQueue::loop() {
  std::vector<Delivery> batch;
  while (true) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
      if (queue_.empty()) return;
      batch.swap(queue_);
    }
    for (Delivery& delivery : batch) {
      delivery_began_ns_ = steady_ns();
      deliver(delivery);
    }
    delivery_began_ns_ = 0;
    batch.clear();
  }
}

void ResponseQueue::deliver(Delivery& delivery) {
  RequestState& request = *delivery.request;
  Result end;  // of the sequence, as far as the callback throws
  end.request_id = delivery.result.request_id;
  end.sequence_index = delivery.result.sequence_index;
  end.sequence_final = delivery.result.sequence_final;
  end.request_final = delivery.result.request_final;
  if (request.callback_failure.empty()) {
    try {
      return request.callback(std::move(delivery.result));
    } catch (...) {
      const std::exception_ptr failure = std::current_exception();
      insist([&] { request.callback_failure = concat("the callback for results failed: ", text_of(failure)); });
    }
    if (!end.request_final) insist([&] { end_request_(request.id, request.callback_failure); });
  }
  if (end.sequence_final) send_failure(request, std::move(end));
}

}  // namespace inflight
