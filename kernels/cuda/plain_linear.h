#pragma once

#include "kernels/cuda/cuda.h"

namespace inflight::cuda {

/// out[M, N] = x[M, K] · weight[N, K]ᵀ (+ bias[N]) for any sizes and alignment, a warp an output: right, not fast.
/// bfloat16, but for a float32 out.
void plain_linear(const void* x, const void* weight, const void* bias, void* out, int64_t m, int64_t n, int64_t k,
                  bool float_out, CudaContext& context);

/// Adds bias[N] (bfloat16) to every row of out[M, N] (float32).
void add_bias(const void* bias, void* out, int64_t m, int64_t n, CudaContext& context);

/// Random bfloat16 between -1 and 1, for timing.
void fill_random(void* data, int64_t elements, uint32_t seed, CudaContext& context);

}  // namespace inflight::cuda
