#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "inflight_batcher/executor/request_state.h"

namespace inflight {

/// Runs the callbacks in the order in which results were pushed, one at a time, until one hangs: runs longer than the
/// patience. Then another thread goes on with the other requests; the thread that hangs delivers what has come for its
/// request meanwhile, in order, when its callback returns. So callbacks of one request never overlap. A client that
/// hangs may have many requests, so with n that hang the patience is 1 / (n + 1)^2 of the first: all of them together
/// hold the others up for 1.65 times that. A callback that throws gets a failure as the final result of each of its
/// sequences and nothing besides.
class ResponseQueue {
 public:
  struct Delivery {
    std::shared_ptr<RequestState> request;
    Result result;
  };

  static constexpr std::chrono::seconds kPatience{10};
  static constexpr int kMaxHanging = 64;  // while so many hang, the next one is waited for

  /// `end_request` is told when a callback has thrown before its request's last result, and why the request is to end.
  explicit ResponseQueue(std::function<void(RequestId, const std::string&)> end_request,
                         std::chrono::nanoseconds patience = kPatience);
  ~ResponseQueue() { stop(); }

  /// Delivers what is queued, then joins the threads. Nothing may be pushed afterwards.
  void stop();

  /// Takes the deliveries and leaves the vector empty.
  void push(std::vector<Delivery>& deliveries);

  /// How long the callback has run that has run longest of those at work; 0: none is.
  double delivery_seconds() const;

 private:
  /// A thread that leads (delivers what is queued), stands by to take the lead from one that hangs, or hangs.
  struct Worker {
    std::vector<Delivery> batch;
    size_t at = 0;  // of the batch; set before began_ns
    /// When the delivery at work began, on the steady clock; 0: none is; negated: another thread has taken the lead.
    std::atomic<int64_t> began_ns = 0;

    std::shared_ptr<RequestState> hanging;  // the request whose results it alone delivers
    std::vector<Delivery> set_aside;        // of that request
    bool ended = false;
    std::thread thread;
  };
  using Lock = std::unique_lock<std::mutex>;

  void start_worker();
  void run(Worker& worker);
  bool stand_by(Worker& worker, Lock& lock);
  bool take_lead(Worker& worker);
  bool depose(Worker& leader);
  std::chrono::nanoseconds patience_now() const;
  void lead(Worker& worker, Lock& lock);
  bool take_batch(Worker& worker, Lock& lock);
  void require_standby();
  void sort_queue(Worker& leader);
  bool deliver_batch(Worker& worker);
  void deliver_set_aside(Worker& worker, Lock& lock);
  void deliver(Delivery& delivery);

  const std::function<void(RequestId, const std::string&)> end_request_;
  const std::chrono::nanoseconds patience_;  // with the first

  mutable std::mutex mutex_;      // guards what follows, and of a worker what stands behind began_ns
  std::condition_variable wake_;  // of the leader
  std::condition_variable wake_standby_;
  std::vector<Delivery> queue_;
  std::vector<std::unique_ptr<Worker>> workers_;
  Worker* leader_ = nullptr;
  bool at_work_ = false;   // the leader has a batch
  bool standby_ = false;   // there is one
  bool watching_ = false;  // it waits with a time-out
  bool stopping_ = false;
  bool finished_ = false;  // the leader has delivered everything
};

}  // namespace inflight
