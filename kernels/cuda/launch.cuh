#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/check.h"
#include "kernels/cuda/cuda.h"

namespace inflight::cuda {

/// Programmatic dependent launch (CUDA Programming Guide, "Programmatic Dependent Launch and Synchronization"): a
/// kernel launched by `launch` may start while the one before it still runs. It must call wait_for_previous() in every
/// thread before it reads anything a kernel wrote and before it writes anything at all to global memory; weights never
/// change, so they may be read (prefetched) earlier. (Exceptions are the plan of generation attention, whose kernel
/// lets the next start only behind a fence that follows its last write, and keys and values that were cached before it;
/// see README.md.) It calls let_next_start() as soon as its blocks need not hold back the next kernel's.
__device__ __forceinline__ void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void let_next_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

/// Both, in the order that measures best for a kernel with little to do before the wait. Few blocks let the next kernel
/// start (and prefetch) at once; many would lose their places on the GPU to blocks of later kernels that only wait, so
/// that they let the next start once their own wait is over.
/// `read_ahead` is run meanwhile: it may read what never changes, and guess from what a kernel may be about to write.
template <typename ReadAhead>
__device__ __forceinline__ void wait_and_let_next_start(const ReadAhead& read_ahead) {
  constexpr unsigned kFewBlocks = 16;
  const bool early = gridDim.x * gridDim.y <= kFewBlocks;
  if (early) let_next_start();
  read_ahead();
  wait_for_previous();
  if (!early) let_next_start();
}
__device__ __forceinline__ void wait_and_let_next_start() {
  wait_and_let_next_start([] {});
}

/// `cluster`: blocks of a thread block cluster, neighbours in x; the grid is a multiple of it.
template <typename... Parameters, typename... Arguments>
void launch_clusters(int cluster, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                     CudaContext& context, Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = context.stream();
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  check_cuda(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), "a kernel cannot be launched");
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, CudaContext& context,
            Arguments&&... arguments) {
  launch_clusters(1, kernel, grid, block, shared_bytes, context, arguments...);
}

}  // namespace inflight::cuda
