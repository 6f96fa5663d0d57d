#pragma once

#include <span>

#include "kernels/cuda/cuda.h"

namespace inflight::cuda {

/// One product of a program, as linear, linear_gated or linear_add will meet it.
struct LinearShape {
  int64_t n = 0, k = 0;    // out [M, N], x [M, K]; weight [N, K], or [2 N, K] if gated
  bool float_out = false;  // out is float32 (logits), else bfloat16
  bool bias = false;
  bool gated = false;
  bool add = false;
  int max_rows = 0;  // the most rows of x it will meet, if fewer than max_tokens; 0: max_tokens
};

/// Chooses the fastest algorithm for each shape and each number of rows up to max_tokens: from the context's cache file
/// (CudaOptions::tuning_cache), else by timing on random data with weights that are not in the L2 cache (seconds for a
/// program, and up to about 2 GB of memory meanwhile), and keeps the choices in that file. Once, at load, outside
/// capture. What was not tuned runs by a guess: few rows by the
/// own kernels, more by the library's first proposal. A batch-invariant context has nothing to choose.
/// Throws Error(kUnavailable) without cuBLASLt or memory.
void tune_linear(std::span<const LinearShape> shapes, int max_tokens, CudaContext& context);

}  // namespace inflight::cuda
