#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend/model_instance.h"

namespace inflight::backend {

/// The loaded instances of the engine models in this process, for models that work with another's engine.
class EngineInstances {
 public:
  static EngineInstances& get();

  void add(ModelInstance& instance);
  void remove(ModelInstance& instance);

  /// An instance of the model that was loaded last under this name: of several, the one with the least to do. It stays
  /// loaded until it is given back. Throws kUnavailable when there is none.
  std::shared_ptr<ModelInstance> borrow(const std::string& name);

 private:
  std::mutex mutex_;
  std::vector<ModelInstance*> instances_;  // in the order in which they were loaded
};

}  // namespace inflight::backend
