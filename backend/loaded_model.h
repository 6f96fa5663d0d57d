#pragma once

namespace inflight::backend {

/// Counts the models that are loaded, for the end of the process. A server that gives up waiting for its requests
/// (`--exit-timeout-secs`) calls exit() with models loaded: libraries' statics are destroyed under threads that still
/// use them, what comes of that is a corrupt heap, and the handler of the signal that follows may wait for ever for a
/// lock that the signal found taken. So, where exit() finds a model loaded, the process ends there and then, with the
/// server's own status for it, 1.
class LoadedModel {
 public:
  LoadedModel();
  ~LoadedModel();
  LoadedModel(const LoadedModel&) = delete;
  LoadedModel& operator=(const LoadedModel&) = delete;
};

}  // namespace inflight::backend
