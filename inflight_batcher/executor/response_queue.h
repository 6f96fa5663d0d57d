#pragma once

#include <condition_variable>
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

 private:
  void loop();
  void deliver(Delivery& delivery);

  const std::function<void(RequestId, const std::string&)> end_request_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Delivery> queue_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace inflight
