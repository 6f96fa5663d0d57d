#pragma once

#include "kernels/cuda/tiled_consumer.cuh"
#include "kernels/cuda/tiled_producer.cuh"

/// Products of many rows with Hopper's asynchrony: blocks that stay and take tile after tile, one thread copying both
/// operands in, warpgroups of 64 rows multiplying out of shared memory into registers (Shah et al. 2024,
/// "FlashAttention-3", has the same roles). Every output is one thread's sum over K from its first column to its last.
namespace inflight::cuda::tiled_linear_kernels {

template <typename S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocksPerSm)
    tiled_kernel(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap weight,
                 const __grid_constant__ Args args) {
  extern __shared__ unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<S>*>((reinterpret_cast<uintptr_t>(memory) + 1023) / 1024 * 1024);
  if (threadIdx.x == 0) {
    prefetch_map(x);
    prefetch_map(weight);
    init_barriers(shared);
  }
  if constexpr (S::kCluster > 1) {
    __syncwarp();
    cluster_sync();  // before anything arrives at the other block's barriers
  } else {
    __syncthreads();
  }
  if (threadIdx.x < 128) {
    yield_registers<S::kProducerRegisters>();
    if (threadIdx.x == 0) Producer<S>(x, weight, args, shared).run();
  } else {
    take_registers<S::kConsumerRegisters>();
    Consumer<S>(args, shared).run();
  }
  if constexpr (S::kCluster > 1) {
    __syncwarp();
    cluster_sync();  // the other block may still arrive at this one's barriers
  }
}

}  // namespace inflight::cuda::tiled_linear_kernels
