#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "inflight_batcher/engine/program_builder.h"
#include "inflight_batcher/engine/step.h"
#include "kernels/cpu/cpu.h"

namespace inflight {

/// What a rank needs to know to load its part.
struct RankConfig {
  Topology topology;
  int rank = 0;
  int threads = 1;
  int max_num_tokens = 0;
  int max_logits_rows = 0;  // of one epilogue slice
  int num_blocks = 0;
  int block_size = 0;
};

/// Memory from the system, page-aligned and zero, taken when touched.
class HostMemory {
 public:
  explicit HostMemory(size_t bytes);
  ~HostMemory();
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;
  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

/// One rank: its shard of the weights, its layers' KV cache, its activations, and the program over them.
class RankRunner {
 public:
  /// Loads. Collective within the tensor group. `pipeline` connects all ranks of the engine.
  RankRunner(const Plan& plan, const RankConfig& config, Communicator& tensor_group, Communicator& pipeline);

  /// Runs one step; the last stage's first tensor rank writes the answers.
  void run(Step& step);

  size_t weight_bytes() const { return weights_.bytes(); }
  size_t arena_bytes() const { return arena_->bytes(); }
  size_t kv_bytes() const { return kv_memory_ ? kv_memory_->bytes() : 0; }

 private:
  void allocate_kv_cache(const Plan& plan);
  BatchView batch_of(Step& step) const;
  void run_ops(const std::vector<BoundOp>& ops, const BatchView& batch);
  void run_epilogue(Step& step, const BatchView& batch);
  void answer_slice(Step& step, const TensorView& logits, int64_t first);
  void copy_captures(Step& step, const BatchView& batch, std::mutex& mutex);

  RankConfig config_;
  int stage_;
  bool first_stage_;
  bool last_stage_;
  bool answers_;  // first tensor rank: copies what leaves the engine
  Communicator& pipeline_;
  cpu::CpuContext device_;
  WeightStore weights_;
  BuiltProgram built_;
  std::unique_ptr<HostMemory> kv_memory_;
  std::vector<KvCacheView> kv_cache_;
  std::unique_ptr<HostMemory> arena_;
};

}  // namespace inflight
