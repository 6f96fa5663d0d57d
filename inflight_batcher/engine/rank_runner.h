#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "inflight_batcher/api/executor_config.h"
#include "inflight_batcher/engine/plan.h"
#include "inflight_batcher/engine/step.h"
#include "inflight_batcher/parallel/communicator.h"

namespace inflight {

/// What a rank needs to know to load its part.
struct RankConfig {
  Topology topology;
  int rank = 0;
  int threads = 1;
  int max_num_tokens = 0;
  int max_batch_size = 0;
  int max_beam_width = 1;
  int max_sequence_length = 0;
  int max_logits_rows = 0;  // of one epilogue slice
  int block_size = 0;
  int num_blocks = 0;  // 0: the runner takes `kv_cache`'s share of its device's free memory
  int num_host_blocks = 0;
  KvCacheConfig kv_cache;
  bool plan_ahead = false;
  bool batch_invariant = false;
  bool random_weights = false;
};

/// One rank: its shard of the weights, its layers' KV cache, its activations, and the program over them. Used by one
/// thread. Steps finish in the order in which they were launched.
class RankRunner {
 public:
  virtual ~RankRunner() = default;

  /// Starts a step; when it throws, the step has left nothing under way. The last stage's first tensor rank answers.
  virtual void launch(Step& step) = 0;

  /// Whether finish() of the oldest launched step returns without waiting.
  virtual bool is_done(const Step& oldest) = 0;

  /// Waits for the oldest launched step and fills in its answers.
  virtual void finish(Step& oldest) = 0;

  /// How many steps may be launched and not yet finished.
  virtual int max_launched() const = 0;

  /// After a failed step, with nothing under way. Throws when the device cannot go on.
  virtual void recover() = 0;

  virtual int num_blocks() const = 0;
  virtual size_t weight_bytes() const = 0;
  virtual size_t arena_bytes() const = 0;
  virtual size_t kv_bytes() const = 0;
  virtual size_t host_kv_bytes() const = 0;
  virtual std::string load_report() const { return {}; }  // how long what took, for the log
};

}  // namespace inflight
