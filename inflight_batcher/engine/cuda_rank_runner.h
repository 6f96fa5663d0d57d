#pragma once

#include <chrono>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "inflight_batcher/engine/cuda_draft_sampler.h"
#include "inflight_batcher/engine/cuda_graphs.h"
#include "inflight_batcher/engine/cuda_step_io.h"
#include "inflight_batcher/engine/cuda_weights.h"
#include "inflight_batcher/engine/program_builder.h"
#include "inflight_batcher/engine/rank_runner.h"

namespace inflight {

/// A rank on one GPU: everything in bfloat16 but the logits. Steps are launched without waiting for the one before;
/// those that only generate replay a captured graph.
class CudaRankRunner final : public RankRunner {
 public:
  CudaRankRunner(const Plan& plan, const RankConfig& config, Communicator& tensor_group);
  ~CudaRankRunner() override;

  void launch(Step& step) override;
  bool is_done(const Step& oldest) override;
  void finish(Step& oldest) override;
  int max_launched() const override { return 2; }
  void recover() override;

  int num_blocks() const override { return config_.num_blocks; }
  size_t weight_bytes() const override { return weights_.bytes(); }
  size_t arena_bytes() const override { return arena_.bytes() + io_.device_bytes(); }
  size_t kv_bytes() const override { return kv_memory_.bytes(); }
  size_t host_kv_bytes() const override { return host_kv_memory_.bytes(); }
  std::string load_report() const override { return report_; }

 private:
  // cuda_rank_loading.cpp
  template <typename Work>
  double timed(const Work& work);
  void load(const Plan& plan);
  void load_weights();
  void tune_linears();
  void warm_up(const Plan& plan);
  void choose_num_blocks(const Plan& plan);
  void place_kv_pool(const Plan& plan, int num_blocks);
  void place_host_kv_pool(const Plan& plan);
  void capture_graphs();
  Step made_up_step(int sequences, int tokens) const;

  void start(Step& step);
  bool can_replay(const Step& step) const;
  void run_ops(const std::vector<BoundOp>& ops, const BatchView& batch);
  void run_body(const BatchView& batch);
  void run_generation(int size);
  void run_step(Step& step, const PackedStep& packed);
  void return_logits(Step& step, const TensorView& logits, int64_t first, int64_t& returned);
  void return_captures(Step& step, const BatchView& batch);
  TensorView view(int slot, const BatchView& batch) const;
  void note_failure();

  RankConfig config_;
  int vocabulary_;
  int max_logits_rows_;  // of one epilogue slice
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  cuda::CudaContext context_;
  std::chrono::steady_clock::time_point weights_begin_ = std::chrono::steady_clock::now();
  CudaWeights weights_;
  Program program_;
  cuda::DeviceMemory arena_;
  CudaStepIo io_;
  CudaDraftSampler drafts_;
  cuda::DeviceMemory kv_memory_;
  std::vector<KvCacheView> kv_cache_;
  PinnedMemory host_kv_memory_;
  std::vector<KvCacheView> host_kv_cache_;
  CudaGraphs graphs_;
  std::deque<int> launched_;  // buffers of the steps under way
  std::string report_;
  std::string broken_;  // why the GPU cannot go on
};

}  // namespace inflight
