#pragma once

#include <memory>
#include <vector>

#include "inflight_batcher/engine/host_memory.h"
#include "inflight_batcher/engine/program_builder.h"
#include "inflight_batcher/engine/rank_runner.h"
#include "kernels/cpu/cpu.h"

namespace inflight {

/// A rank on the host's processors: a launched step is done.
class CpuRankRunner final : public RankRunner {
 public:
  /// Loads. Collective within the tensor group. `pipeline` connects all ranks of the engine.
  CpuRankRunner(const Plan& plan, const RankConfig& config, Communicator& tensor_group, Communicator& pipeline);

  void launch(Step& step) override;
  bool is_done(const Step&) override { return true; }
  void finish(Step&) override {}
  int max_launched() const override { return 1; }
  void recover() override {}

  int num_blocks() const override { return config_.num_blocks; }
  size_t weight_bytes() const override { return weights_->bytes(); }
  size_t arena_bytes() const override { return arena_->bytes(); }
  size_t kv_bytes() const override { return kv_memory_ ? kv_memory_->bytes() : 0; }
  size_t host_kv_bytes() const override { return host_kv_memory_ ? host_kv_memory_->bytes() : 0; }

 private:
  std::unique_ptr<HostMemory> allocate_kv_cache(const Plan& plan, int num_blocks, std::vector<KvCacheView>& layers);
  BatchView batch_of(Step& step);
  void add_virtual_rows(Step& step, BatchView& batch);
  void resolve_pending_tokens(const Step& step);
  int slot_of_row(const Step& step, int64_t row) const;
  std::vector<SamplingRow> resolved_rows(const Step& step, int64_t first, int64_t count);
  void run_ops(const std::vector<BoundOp>& ops, const BatchView& batch);
  void run_epilogue(Step& step, const BatchView& batch);
  void answer_logits(Step& step, const TensorView& logits, int64_t first);
  void rank_candidates(Step& step, const TensorView& logits, int64_t first);
  void sample_slice(Step& step, const TensorView& logits, int64_t first);
  void copy_captures(Step& step, const BatchView& batch);

  RankConfig config_;
  int stage_;
  bool last_stage_;
  bool answers_;  // first tensor rank: copies what leaves the engine
  Communicator& pipeline_;
  cpu::CpuContext device_;
  std::unique_ptr<WeightSource> weights_;
  Program program_;
  std::unique_ptr<HostMemory> kv_memory_;
  std::vector<KvCacheView> kv_cache_;
  std::unique_ptr<HostMemory> host_kv_memory_;  // beside it, where blocks move that would be evicted
  std::vector<KvCacheView> host_kv_cache_;
  std::unique_ptr<HostMemory> arena_;

  int hidden_size_;

  // Of one step.
  std::vector<float> virtual_rows_;  // of the virtual tokens, one behind the other
  std::vector<int32_t> token_ids_;   // when some were pending
  std::vector<int32_t> tokens_;      // sampled
  std::vector<float> log_probs_;
  std::vector<std::vector<int32_t>> histories_;  // of rows with a pending token
  std::vector<int32_t> last_tokens_;             // by slot
};

}  // namespace inflight
