#include "kernels/cuda/context_attention_kernel.cuh"

namespace inflight::cuda {

const ContextKernels& context_kernels_256() {
  using namespace context_attention_kernels;
  using Any = Shape<256, 2, 64, 232>;
  static constexpr ContextKernels kKernels = {256, kernel_of<Any, false>(), kernel_of<Any, true>()};
  return kKernels;
}

}  // namespace inflight::cuda
