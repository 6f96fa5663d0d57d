#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/step_io.h"

namespace inflight::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxBlocks = 64;  // of one part

__device__ void unpack_tokens(const StepUnpacking& step, int first, int stride) {
  for (int i = first; i < step.num_tokens; i += stride) {
    const int slot = step.slots[step.token_sequences[i]];
    const int position = step.positions[i];
    int32_t id = step.token_ids[i];
    if (slot >= 0 && position >= 0 && position < step.history_stride) {
      int32_t* remembered = step.history + static_cast<int64_t>(slot) * step.history_stride + position;
      if (id == StepUnpacking::kPendingToken)
        id = *remembered;
      else
        *remembered = id;
    }
    step.token_ids_out[i] = id;
  }
}

__device__ void unpack_tables(const StepUnpacking& step, int first, int stride) {
  const int count = step.table_rows * step.table_width;
  for (int i = first; i < count; i += stride) {
    const int row = i / step.table_width;
    step.block_tables_out[static_cast<int64_t>(row) * step.table_stride + i % step.table_width] = step.block_tables[i];
  }
}

// blockIdx.y: the tokens, the block tables, then the plain copies.
__global__ void __launch_bounds__(kThreads) unpack_kernel(const StepUnpacking step) {
  const int first = blockIdx.x * kThreads + threadIdx.x, stride = gridDim.x * kThreads;
  if (blockIdx.y == 0) return unpack_tokens(step, first, stride);
  if (blockIdx.y == 1) return unpack_tables(step, first, stride);
  const WordCopy copy = step.copies[blockIdx.y - 2];
  for (int i = first; i < copy.count; i += stride) copy.to[i] = copy.from[i];
}

__global__ void __launch_bounds__(kThreads) publish_kernel(const int32_t* tokens, const float* log_probs, int count,
                                                           const int32_t* buffer, const ResultBuffers results) {
  wait_for_previous();
  const int which = *buffer & 1;
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < count; i += gridDim.x * kThreads) {
    (which ? results.tokens[1] : results.tokens[0])[i] = tokens[i];
    (which ? results.log_probs[1] : results.log_probs[0])[i] = log_probs[i];
  }
}

}  // namespace

void unpack_step(const StepUnpacking& step, CudaContext& context) {
  int most = std::max(step.num_tokens, step.table_rows * step.table_width);
  for (const WordCopy& copy : step.copies) most = std::max(most, copy.count);
  if (most == 0) return;
  const int blocks = std::min((most + kThreads - 1) / kThreads, kMaxBlocks);
  // It follows work of other streams, so it starts as an ordinary launch does.
  unpack_kernel<<<dim3(blocks, 2 + StepUnpacking::kMaxCopies), kThreads, 0, context.stream()>>>(step);
  check_cuda(cudaGetLastError(), "unpack_step");
}

void publish_results(const int32_t* tokens, const float* log_probs, int count, const int32_t* buffer,
                     const ResultBuffers& results, CudaContext& context) {
  const int blocks = std::min((count + kThreads - 1) / kThreads, kMaxBlocks);
  launch(publish_kernel, dim3(blocks), dim3(kThreads), 0, context, tokens, log_probs, count, buffer, results);
}

}  // namespace inflight::cuda
