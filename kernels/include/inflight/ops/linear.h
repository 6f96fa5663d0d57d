#pragma once

#include "inflight/device.h"
#include "inflight/tensor.h"

namespace inflight {

/// out = x · weightᵀ + bias, accumulated in float32.
/// A row of out depends on the same row of x only, bit for bit: the order of the sum over K never depends on M.
struct LinearArgs {
  TensorView x;       // [M, K]
  TensorView weight;  // [N, K] float32, float16 or bfloat16
  TensorView bias;    // [N] or absent
  TensorView out;     // [M, N]
};

}  // namespace inflight
