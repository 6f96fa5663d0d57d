#pragma once

#include "inflight/device.h"
#include "inflight/tensor.h"

namespace inflight {

/// silu(x) = x / (1 + exp(-x)); gelu(x) = x · Φ(x); gelu_tanh its approximation by tanh (Hendrycks & Gimpel 2016).
enum class Activation { kSilu, kGelu, kGeluTanh, kRelu };

/// out = activation(x), elementwise. out may be x itself.
struct ActivationArgs {
  TensorView x;    // [M, N]
  TensorView out;  // [M, N]
  Activation activation = Activation::kGelu;
};

/// out = activation(gate) · up, for x = [gate, up] side by side (Shazeer 2020, "GLU Variants Improve Transformer").
struct GatedActivationArgs {
  TensorView x;    // [M, 2 N]
  TensorView out;  // [M, N]
  Activation activation = Activation::kSilu;
};

/// out = a + b, elementwise. out may be a or b.
struct AddArgs {
  TensorView a;    // [M, N]
  TensorView b;    // [M, N]
  TensorView out;  // [M, N]
};

}  // namespace inflight
