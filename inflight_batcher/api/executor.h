#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "inflight_batcher/api/executor_config.h"
#include "inflight_batcher/api/request.h"
#include "inflight_batcher/api/result.h"

namespace inflight {

/// What the executor serves, for callers that check or size things.
struct ModelInfo {
  std::string family;
  int vocabulary_size = 0;
  int max_sequence_length = 0;  // the limit in force
  std::string device;
  int tensor_parallel = 1;
  int pipeline_parallel = 1;
  int64_t weight_bytes = 0;  // of all ranks
  int64_t kv_bytes_per_token = 0;
  std::string load_report;  // lines for the log: how long loading took, what memory became of it; empty on the CPU
};

/// A snapshot; counters run from the start.
struct ExecutorStats {
  int64_t steps = 0;
  int64_t timestamp_us = 0;  // wall clock of the last step, microseconds since the epoch
  int active_requests = 0;   // waiting and running sequences
  int waiting_requests = 0;
  int scheduled_requests = 0;   // of the last step
  int context_requests = 0;     // of the last step
  int generation_requests = 0;  // of the last step
  int paused_requests = 0;      // of the last step
  int context_tokens = 0;       // of the last step
  int max_requests = 0;         // max_batch_size
  int micro_batch = 0;
  int kv_blocks_max = 0;
  int kv_blocks_used = 0;  // referenced by a sequence
  int kv_blocks_free = 0;
  int kv_tokens_per_block = 0;
  int64_t kv_blocks_reused = 0;  // counter
  int kv_host_blocks_max = 0;
  int kv_host_blocks_used = 0;      // with content that was moved there
  int64_t kv_blocks_offloaded = 0;  // counters of blocks moved to the host's memory and back
  int64_t kv_blocks_onboarded = 0;
  int64_t requests_completed = 0;  // counters of requests
  int64_t requests_cancelled = 0;
  int64_t requests_failed = 0;
  int64_t preemptions = 0;
  int64_t tokens_generated = 0;
  int64_t tokens_prefilled = 0;  // prompt tokens computed
  int64_t tokens_reused = 0;     // prompt tokens taken from the prefix tree
  int64_t draft_tokens = 0;      // verified
  int64_t accepted_draft_tokens = 0;
  double delivery_seconds = 0;  // how long the callback has run that has run longest of those at work; 0: none is
  int64_t memory_cpu_bytes = 0;
  int64_t memory_gpu_bytes = 0;
  int64_t memory_pinned_bytes = 0;
};

/// A plan bound to devices, with the batch manager on top: requests in, tokens out, many in flight.
///
/// Thread-safe. One engine thread steps the batch, one response thread runs the callbacks, so a slow callback delays
/// answers but never the engine. When one hangs (it has run for 10 s; for less while others hang), another thread goes
/// on with the other requests: then, and only then, callbacks of different requests overlap. Those of one request never
/// do, and are always in order. An idle executor blocks; it uses no processor time.
class Executor {
 public:
  using Callback = std::function<void(Result&&)>;

  /// Loads the plan at `engine_dir` (a folder with plan.json). Throws Error: kNotFound (no plan), kInvalidArgument
  /// (what the plan or the configuration says), kUnsupported (an op, dtype or device that this build lacks).
  Executor(const std::string& engine_dir, const ExecutorConfig& config);

  /// Cancels what is in flight, delivers the final results, joins the threads and gives all memory back.
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  /// Throws what submitting the request would throw now.
  void validate(Request request) const;

  /// Queues a request. `callback` is called on a response thread for every result; it must not destroy the executor.
  /// If it throws, the request ends: the callback gets a kInternal result with the exception's text as the final one of
  /// each sequence that has not ended, the one it threw at included; what it throws then is lost. Throws Error:
  /// kInvalidArgument (both numbers in the text), kUnavailable (queue full or shutting down), kUnsupported. After a
  /// throw the callback is never called.
  RequestId submit(Request request, Callback callback);

  /// Ends a request, or one of its sequences, at the next step with kCancelled results. What is unknown or has finished
  /// is ignored.
  void cancel(RequestId id, std::optional<int> sequence_index = {});

  ExecutorStats stats() const;
  const ModelInfo& model() const;
  const ExecutorConfig& config() const;

 private:
  class Impl;
  friend class DraftedAnswer;  // asks an executor that may have gone meanwhile
  std::shared_ptr<Impl> impl_;
};

}  // namespace inflight
