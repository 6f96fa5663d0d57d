#include "inflight_batcher/python/handle.h"

#include <nanobind/stl/shared_ptr.h>

#include <chrono>

namespace nb = nanobind;

namespace inflight {

void ResultQueue::put(Result&& result) {
  {
    std::lock_guard lock(mutex_);
    results_.push_back(std::move(result));
  }
  wake_.notify_all();
}

std::optional<Result> ResultQueue::get(std::optional<double> timeout_seconds) {
  std::unique_lock lock(mutex_);
  const auto ready = [&] { return !results_.empty(); };
  if (timeout_seconds) {
    if (!wake_.wait_for(lock, std::chrono::duration<double>(*timeout_seconds), ready)) return std::nullopt;
  } else {
    wake_.wait(lock, ready);
  }
  Result result = std::move(results_.front());
  results_.pop_front();
  return result;
}

std::optional<Result> ResultQueue::get_nowait() { return get(0.0); }

nb::tuple submit_to_queue(Executor& executor, Request request, nb::object on_result) {
  auto queue = std::make_shared<ResultQueue>();
  // The callback may be destroyed on the response thread, and a Python object may only be let go under the interpreter
  // lock.
  std::shared_ptr<nb::object> notify;
  if (!on_result.is_none()) {
    notify = std::shared_ptr<nb::object>(new nb::object(std::move(on_result)), [](nb::object* object) {
      nb::gil_scoped_acquire lock;
      delete object;
    });
  }
  RequestId id = 0;
  {
    nb::gil_scoped_release unlocked;
    id = executor.submit(std::move(request), [queue, notify](Result&& result) {
      queue->put(std::move(result));
      if (!notify) return;
      nb::gil_scoped_acquire lock;
      try {
        (*notify)();
      } catch (nb::python_error& error) {
        error.discard_as_unraisable("inflight result callback");
      }
    });
  }
  return nb::make_tuple(id, queue);
}

}  // namespace inflight
