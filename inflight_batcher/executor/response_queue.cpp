#include "inflight_batcher/executor/response_queue.h"

#include <iterator>

namespace inflight {

ResponseQueue::ResponseQueue() : thread_([this] { loop(); }) {}

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

void ResponseQueue::loop() {
  std::vector<Delivery> batch;
  while (true) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
      if (queue_.empty()) return;
      batch.swap(queue_);
    }
    for (Delivery& delivery : batch) delivery.request->callback(std::move(delivery.result));
    batch.clear();
  }
}

}  // namespace inflight
