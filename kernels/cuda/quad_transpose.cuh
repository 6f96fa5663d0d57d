#pragma once

#include <cstdint>

namespace inflight::cuda {

/// Thread i of a quad holds words w[0..3] of row i of a 4 x 4 matrix; afterwards of column i.
__device__ __forceinline__ void transpose_quad(uint32_t (&w)[4]) {
  const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
  const uint32_t a = __shfl_xor_sync(0xffffffffu, odd ? w[0] : w[1], 1);
  const uint32_t b = __shfl_xor_sync(0xffffffffu, odd ? w[2] : w[3], 1);
  (odd ? w[0] : w[1]) = a;
  (odd ? w[2] : w[3]) = b;
  const uint32_t c = __shfl_xor_sync(0xffffffffu, high ? w[0] : w[2], 2);
  const uint32_t d = __shfl_xor_sync(0xffffffffu, high ? w[1] : w[3], 2);
  (high ? w[0] : w[2]) = c;
  (high ? w[1] : w[3]) = d;
}

}  // namespace inflight::cuda
