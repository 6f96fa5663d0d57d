#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "inflight_batcher/executor/request_state.h"

namespace inflight {

/// Runs the callbacks on a thread of its own, in the order in which results were pushed. A callback that throws gets a
/// failure as the final result of each of its sequences and nothing besides.
class ResponseQueue {
 public:
  struct Delivery {
    std::shared_ptr<RequestState> request;
    Result result;
  };

  /// `end_request` is told when a callback has thrown before its request's last result, and why the request is to end.
  explicit ResponseQueue(std::function<void(RequestId, const std::string&)> end_request);
  ~ResponseQueue() { stop(); }

  /// Delivers what is queued, then joins the thread. Nothing may be pushed afterwards.
  void stop();

  /// Takes the deliveries and leaves the vector empty.
  void push(std::vector<Delivery>& deliveries);

  /// How long the callback at work has run; 0: none is.
  double delivery_seconds() const;

 private:
  void loop();
  void deliver(Delivery& delivery);

  const std::function<void(RequestId, const std::string&)> end_request_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Delivery> queue_;
  bool stopping_ = false;
  std::atomic<int64_t> delivery_began_ns_ = 0;  // on the steady clock; 0: nothing is being delivered
  std::thread thread_;
};

}  // namespace inflight
