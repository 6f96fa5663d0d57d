#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "inflight_batcher/engine/cuda_uploader.h"
#include "inflight_batcher/engine/weights.h"
#include "kernels/cuda/cuda.h"

namespace inflight {

/// A plan's weights in the memory of one GPU as bfloat16; a tied one is there once. get() gives the place at once, the
/// numbers are there after finish_loading().
class CudaWeights final : public WeightSource {
 public:
  /// Takes the memory for all weights of the plan. `random`: drawn on the GPU, no file is opened.
  CudaWeights(const Plan& plan, bool random, int threads, cuda::CudaContext& context);

  TensorView get(const std::string& name) override;
  TensorView constant(const std::vector<float>& values) override;
  size_t bytes() const override { return used_; }

  /// Waits for the uploads and lets go of the files. Throws what went wrong.
  void finish_loading();

 private:
  void fill(const std::string& name, const TensorView& view);

  const Plan& plan_;
  cuda::CudaContext& context_;
  cuda::DeviceMemory memory_;
  std::unique_ptr<WeightStore> store_;  // absent: random
  std::unique_ptr<CudaUploader> uploader_;
  size_t used_ = 0;
  std::map<std::string, TensorView> placed_;  // by identity
  std::map<std::vector<float>, cuda::DeviceMemory> constants_;
};

}  // namespace inflight
