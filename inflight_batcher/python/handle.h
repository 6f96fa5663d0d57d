#pragma once

#include <nanobind/nanobind.h>

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>

#include "inflight_batcher/api/executor.h"

namespace inflight {

/// Results of one request on their way to a Python thread.
class ResultQueue {
 public:
  void put(Result&& result);

  /// Waits without the interpreter lock; empty when `timeout_seconds` pass first.
  std::optional<Result> get(std::optional<double> timeout_seconds);
  std::optional<Result> get_nowait();

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Result> results_;
};

/// Submits with a queue as the callback. Returns (request id, queue).
nanobind::tuple submit_to_queue(Executor& executor, Request request, nanobind::object on_result);

}  // namespace inflight
