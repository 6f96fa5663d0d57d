#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <span>

#include "backend/model.h"
#include "backend/shared_executors.h"

namespace inflight::backend {

/// One instance of a model: an executor with its weights, KV cache and threads, which an instance of another model with
/// the same engine and parameters may share; or none, for a model that works with the engine of another.
class ModelInstance {
 public:
  /// Loads the engine. Throws what is wrong with the plan, the configuration or the device.
  ModelInstance(Model& model, TRITONBACKEND_ModelInstance* handle);

  /// Waits for the outstanding answers, then gives all memory back.
  ~ModelInstance();
  ModelInstance(const ModelInstance&) = delete;
  ModelInstance& operator=(const ModelInstance&) = delete;

  Model& model() { return model_; }
  Executor& executor() { return **executor_; }
  TRITONBACKEND_ModelInstance* handle() { return handle_; }

  /// Takes all requests over and returns at once. A request that fails answers for itself.
  void execute(std::span<TRITONBACKEND_Request* const> requests);

  /// Work on a request has begun that on_finished will end: until then the instance stays.
  void hold();
  void on_finished();

  /// Requests that it works on, others' too.
  int outstanding();

 private:
  void load_engine();
  void start(TRITONBACKEND_Request* request);

  Model& model_;
  TRITONBACKEND_ModelInstance* handle_;
  std::optional<ExecutorLease> executor_;
  std::mutex mutex_;
  std::condition_variable drained_;
  int outstanding_ = 0;
};

}  // namespace inflight::backend
