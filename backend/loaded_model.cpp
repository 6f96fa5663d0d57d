#include "backend/loaded_model.h"

#include <unistd.h>

#include <atomic>
#include <cstdlib>

namespace inflight::backend {

namespace {

std::atomic<int> loaded_models{0};

// Also runs where the library is unloaded; then there are none.
void end_process_with_models() {
  if (loaded_models > 0) _exit(1);
}

}  // namespace

// What is registered last runs first: before what belongs to libraries that were loaded earlier.
LoadedModel::LoadedModel() {
  ++loaded_models;
  std::atexit(end_process_with_models);
}

LoadedModel::~LoadedModel() { --loaded_models; }

}  // namespace inflight::backend
