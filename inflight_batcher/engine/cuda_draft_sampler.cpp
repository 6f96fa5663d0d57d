#include "inflight_batcher/engine/cuda_draft_sampler.h"

#include <algorithm>

namespace inflight {

void CudaDraftSampler::sample(Step& step, const TensorView& logits, int64_t first, cuda::CudaContext& context) {
  picked_.clear();
  rows_.clear();
  const auto end = std::min<int64_t>(static_cast<int64_t>(step.sampling.size()), first + logits.shape[0]);
  for (int64_t row = first; row < end; ++row) {
    if (!step.sampling[row].verifies_draft()) continue;
    check(step.sampling[row].pending == 0, ErrorCode::kInternal, "a draft stands behind a token that is not known");
    picked_.push_back(row - first);
    rows_.push_back(step.sampling[row]);
  }
  if (rows_.empty()) return;
  if (!host_) host_ = std::make_unique<cpu::CpuContext>(threads_);
  bring(logits, context);
  tokens_.resize(rows_.size());
  log_probs_.resize(rows_.size());
  const TensorView view(logits_.data(), DType::kFloat32, {static_cast<int64_t>(rows_.size()), logits.shape[1]});
  cpu::op_table().sample({view, rows_, tokens_, log_probs_}, *host_);
  step.tokens.resize(step.sampling.size());
  step.log_probs.resize(step.sampling.size());
  for (size_t i = 0; i < picked_.size(); ++i) {
    step.tokens[first + picked_[i]] = tokens_[i];
    step.log_probs[first + picked_[i]] = log_probs_[i];
  }
}

void CudaDraftSampler::bring(const TensorView& logits, cuda::CudaContext& context) {
  const int64_t width = logits.shape[1];
  logits_.resize(picked_.size() * width);
  for (size_t i = 0; i < picked_.size(); ++i)
    context.copy(logits_.data() + i * width, logits.as<float>() + picked_[i] * width, width * sizeof(float));
  context.synchronize();
}

}  // namespace inflight
