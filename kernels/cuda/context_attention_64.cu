#include "kernels/cuda/context_attention_kernel.cuh"

namespace inflight::cuda {

const ContextKernels& context_kernels_64() {
  using namespace context_attention_kernels;
  using Plain = Shape<64, 3, 128, 160>;
  using Biased = Shape<64, 2, 128, 232>;  // needs more registers
  static constexpr ContextKernels kKernels = {64, kernel_of<Plain, false>(), kernel_of<Biased, true>()};
  return kKernels;
}

}  // namespace inflight::cuda
