#pragma once

#include "inflight/device.h"
#include "inflight/tensor.h"

namespace inflight {

/// out = x / sqrt(mean(x²) + epsilon) · weight, over the last dimension (Zhang & Sennrich 2019, "Root Mean Square
/// Layer Normalization"). With `residual`: first residual += x, then the norm of residual goes to out; the sum stays in
/// residual for the next addition. out may be x itself.
struct RmsNormArgs {
  TensorView x;         // [M, H]
  TensorView residual;  // [M, H] in and out, or absent
  TensorView weight;    // [H]
  TensorView out;       // [M, H]
  float epsilon = 1e-5f;
};

/// out = (x - mean) / sqrt(variance + epsilon) · weight + bias (Ba et al. 2016, "Layer Normalization"). `residual` as
/// above.
struct LayerNormArgs {
  TensorView x;         // [M, H]
  TensorView residual;  // [M, H] in and out, or absent
  TensorView weight;    // [H]
  TensorView bias;      // [H] or absent
  TensorView out;       // [M, H]
  float epsilon = 1e-5f;
};

}  // namespace inflight
