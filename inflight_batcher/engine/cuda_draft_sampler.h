#pragma once

#include <memory>
#include <vector>

#include "inflight_batcher/engine/step.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cuda/cuda.h"

namespace inflight {

/// Samples the rows that verify a draft by its logits. Those logits come from a client, so they are on the host, and
/// the target's are brought there too: rare rows, of which the step waits.
class CudaDraftSampler {
 public:
  explicit CudaDraftSampler(int threads) : threads_(threads) {}

  /// Of the rows [first, first + logits.shape[0]) of `step`, whose logits [rows, vocabulary] are being computed on the
  /// device: puts the tokens and log probs of those that verify drafts into the step's answers.
  void sample(Step& step, const TensorView& logits, int64_t first, cuda::CudaContext& context);

 private:
  void bring(const TensorView& logits, cuda::CudaContext& context);

  int threads_;
  std::unique_ptr<cpu::CpuContext> host_;  // there once it is needed
  std::vector<int64_t> picked_;            // rows of the slice
  std::vector<SamplingRow> rows_;
  std::vector<float> logits_;
  std::vector<int32_t> tokens_;
  std::vector<float> log_probs_;
};

}  // namespace inflight
