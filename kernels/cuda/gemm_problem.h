#pragma once

#include <compare>
#include <cstdint>

namespace inflight::cuda {

/// The sizes of out[M, N] = x[M, K] · weight[N, K]ᵀ (+ bias[N]) (+ out), bfloat16 but for a float32 out.
struct GemmProblem {
  int64_t m = 0, n = 0, k = 0;
  bool float_out = false;
  bool bias = false;
  bool add = false;  // to what out holds
  auto operator<=>(const GemmProblem&) const = default;
};

}  // namespace inflight::cuda
