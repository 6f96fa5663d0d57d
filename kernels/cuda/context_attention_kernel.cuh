#pragma once

#include "kernels/cuda/context_attention_consumer.cuh"
#include "kernels/cuda/context_attention_producer.cuh"
#include "kernels/cuda/context_attention_scheduler.cuh"
#include "kernels/cuda/launch.cuh"

/// Attention of a tile of queries over its sequence's keys in one pass, scores never leaving the registers (Dao 2023,
/// "FlashAttention-2"), with Hopper's asynchrony: one warp copies tiles of keys and values in, warpgroups of 64 rows
/// multiply, each computing one tile's softmax while the next tile's scores are made, and taking turns so that one's
/// softmax runs under another's products (Shah et al. 2024, "FlashAttention-3").
///
/// Every row takes its keys in tiles that begin at fixed positions of the sequence, from the first one upward, and a
/// tile that it does not see changes nothing, so its bits depend on neither its chunk, its tile nor its company.
namespace inflight::cuda::context_attention_kernels {

template <typename S, bool kBiased>
__global__ void __launch_bounds__(S::kThreads, 1)
    context_attention_kernel(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap keys,
                             const __grid_constant__ CUtensorMap values,
                             const __grid_constant__ ContextAttentionParams params) {
  extern __shared__ unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<S>*>((reinterpret_cast<uintptr_t>(memory) + 1023) / 1024 * 1024);
  if (threadIdx.x == 0) {
    prefetch_map(q);
    prefetch_map(keys);
    prefetch_map(values);
    init_barriers(shared);
  }
  __syncthreads();
  wait_for_previous();
  if (threadIdx.x < 128) {
    yield_registers<S::kProducerRegisters>();
    if (threadIdx.x < 32) {
      Producer<S>(q, keys, values, params, shared).run();
    } else if (threadIdx.x < 64) {
      Scheduler<S>(params, shared).run();
      let_next_start();
    }
  } else {
    take_registers<S::kConsumerRegisters>();
    Consumer<S, kBiased>(params, shared).run();
  }
}

template <typename S, bool kBiased>
void launch_context_attention(const ContextMaps& maps, const ContextAttentionParams& params, int num_blocks,
                              CudaContext& context) {
  constexpr int kSharedBytes = sizeof(Shared<S>) + 1024;  // dynamic memory begins at any 16 bytes
  const auto kernel = context_attention_kernel<S, kBiased>;
  static const cudaError_t allowed =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  check_cuda(allowed, "context attention's shared memory");
  launch(kernel, num_blocks, S::kThreads, kSharedBytes, context, maps.q, maps.keys, maps.values, params);
}

template <typename S, bool kBiased>
constexpr ContextKernel kernel_of() {
  return {S::kRows, S::kKeys, launch_context_attention<S, kBiased>};
}

}  // namespace inflight::cuda::context_attention_kernels
