#pragma once

#include "inflight/device.h"
#include "inflight/ops/activation.h"
#include "inflight/tensor.h"

namespace inflight {

/// out = x · weightᵀ + bias, accumulated in float32.
/// A row of out depends on the same row of x only, bit for bit: the order of the sum over K never depends on M.
struct LinearArgs {
  TensorView x;        // [M, K]
  TensorView weight;   // [N, K] float32, float16 or bfloat16
  TensorView bias;     // [N] or absent
  TensorView out;      // [M, N]
  int64_t x_rows = 0;  // rows of memory from x on, where more than M: a device may read them, the result is the same
};

/// residual += x · weightᵀ + bias. Whether the product is rounded to the residual's dtype before it is added is the
/// device's own affair. Rows are independent as above.
struct LinearAddArgs {
  TensorView x;         // [M, K]
  TensorView weight;    // [N, K]
  TensorView bias;      // [N] or absent
  TensorView residual;  // [M, N]
  int64_t x_rows = 0;   // as above
};

/// out = activation(x · Wgᵀ) · (x · Wuᵀ) for weight = [Wg; Wu], one above the other: linear and gated_activation in
/// one. Rows are independent as above.
struct LinearGatedArgs {
  TensorView x;        // [M, K]
  TensorView weight;   // [2 N, K]
  TensorView scratch;  // [M, 2 N], for a device that computes it in two steps
  TensorView out;      // [M, N]
  Activation activation = Activation::kSilu;
  int64_t x_rows = 0;  // as above
};

}  // namespace inflight
