#pragma once

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/gemm_problem.h"

namespace inflight::cuda {

/// For any sizes and alignment, a warp an output: right, not fast. `bias` may be null whatever the problem says.
void plain_linear(const void* x, const void* weight, const void* bias, void* out, const GemmProblem& problem,
                  CudaContext& context);

/// Adds bias[N] (bfloat16) to every row of out[M, N] (float32).
void add_bias(const void* bias, void* out, int64_t m, int64_t n, CudaContext& context);

/// Random bfloat16 between -1 and 1, for timing.
void fill_random(void* data, int64_t elements, uint32_t seed, CudaContext& context);

}  // namespace inflight::cuda
