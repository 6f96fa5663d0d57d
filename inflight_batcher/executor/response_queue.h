#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "inflight_batcher/executor/request_state.h"

namespace inflight {

/// Runs the callbacks on a thread of its own, in the order in which results were pushed.
class ResponseQueue {
 public:
  struct Delivery {
    std::shared_ptr<RequestState> request;
    Result result;
  };

  ResponseQueue();
  ~ResponseQueue() { stop(); }

  /// Delivers what is queued, then joins the thread. Nothing may be pushed afterwards.
  void stop();

  /// Takes the deliveries and leaves the vector empty.
  void push(std::vector<Delivery>& deliveries);

 private:
  void loop();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Delivery> queue_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace inflight
