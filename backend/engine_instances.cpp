#include "backend/engine_instances.h"

#include <algorithm>

namespace inflight::backend {

EngineInstances& EngineInstances::get() {
  static EngineInstances instances;
  return instances;
}

void EngineInstances::add(ModelInstance& instance) {
  const std::lock_guard lock(mutex_);
  instances_.push_back(&instance);
}

void EngineInstances::remove(ModelInstance& instance) {
  const std::lock_guard lock(mutex_);
  std::erase(instances_, &instance);
}

std::shared_ptr<ModelInstance> EngineInstances::borrow(const std::string& name) {
  const std::lock_guard lock(mutex_);
  ModelInstance* best = nullptr;
  for (auto it = instances_.rbegin(); it != instances_.rend(); ++it) {
    if ((*it)->model().config().name != name) continue;
    if (best == nullptr) best = *it;  // an older one may be on its way out: only those of the same load count
    if (&(*it)->model() == &best->model() && (*it)->outstanding() < best->outstanding()) best = *it;
  }
  check(best != nullptr, ErrorCode::kUnavailable, "model ", name, " is not loaded by the inflight backend");
  best->hold();
  return {best, [](ModelInstance* it) { it->on_finished(); }};
}

}  // namespace inflight::backend
