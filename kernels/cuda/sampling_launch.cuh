#pragma once

#include <algorithm>

#include "kernels/cuda/arguments.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sampling_memory.cuh"

/// How kernels over rows of logits are launched: a cluster of blocks holds each row in its shared memory.
namespace inflight::cuda::sampling {

/// Of a row.
struct TeamShape {
  int blocks = 1;
  int chunks_per_block = 0;
  size_t shared_bytes = 0;
};

/// Bytes no fewer than what a kernel declares itself.
constexpr size_t kStaticBytes = 2048;

/// Few blocks for small vocabularies: every exchange between blocks has its price. Of V alone, so that a row's sums do
/// not depend on the batch. Throws Error(kUnsupported) where a row does not fit.
inline TeamShape team_shape(const char* op, int64_t vocabulary, const CudaContext& context) {
  constexpr int64_t kLeastPerBlock = 4096;
  TeamShape shape;
  while (shape.blocks < kMaxBlocks && vocabulary > shape.blocks * kLeastPerBlock) shape.blocks *= 2;
  // One more chunk where rows begin unaligned.
  shape.chunks_per_block = static_cast<int>(divide_up(divide_up(vocabulary, 4) + (vocabulary % 4 != 0), shape.blocks));
  shape.shared_bytes = kLogitsOffset + shape.chunks_per_block * 16;
  check(shape.shared_bytes + kStaticBytes <= context.max_shared_bytes(), ErrorCode::kUnsupported, op,
        ": a vocabulary of ", vocabulary, " tokens does not fit the shared memory of ", shape.blocks, " SMs");
  return shape;
}

/// Allows the kernel all of an SM's shared memory.
template <typename Kernel>
void allow_shared_memory(Kernel kernel, const CudaContext& context) {
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(context.max_shared_bytes() - kStaticBytes)),
             "shared memory for sampling");
}

/// A grid of `rows` clusters.
template <typename Kernel, typename Parameters>
void launch_teams(Kernel kernel, int64_t rows, const TeamShape& shape, CudaContext& context,
                  const Parameters& parameters) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(shape.blocks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(rows * shape.blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = context.stream();
  config.attrs = attributes;
  config.numAttrs = 2;
  check_cuda(cudaLaunchKernelEx(&config, kernel, parameters), "the sampling kernel cannot be launched");
}

}  // namespace inflight::cuda::sampling
