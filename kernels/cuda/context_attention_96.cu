#include "kernels/cuda/context_attention_kernel.cuh"

namespace inflight::cuda {

const ContextKernels& context_kernels_96() {
  using namespace context_attention_kernels;
  using Any = Shape<96, 2, 128, 232>;
  static constexpr ContextKernels kKernels = {96, kernel_of<Any, false>(), kernel_of<Any, true>()};
  return kKernels;
}

}  // namespace inflight::cuda
