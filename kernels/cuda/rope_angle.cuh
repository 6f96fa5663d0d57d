#pragma once

#include <cuda_runtime.h>

namespace inflight::cuda {

struct Angle {
  float cosine, sine;
};

/// Of an angle in radians, within 1e-6 up to millions: whole turns are subtracted in two exact-product steps (Cody &
/// Waite 1980), after which the hardware's own functions are accurate. Their error grows with the angle otherwise.
__device__ __forceinline__ Angle cosine_and_sine(float angle) {
  constexpr float kTurn = 6.28318548f, kTurnError = -1.74845553e-7f;  // 2π = kTurn + kTurnError
  const float turns = rintf(angle * 0.159154943f);
  const float rest = fmaf(-turns, kTurnError, fmaf(-turns, kTurn, angle));
  return {__cosf(rest), __sinf(rest)};
}

struct RotatedPair {
  float first, second;
};

/// With every rounding spelled out: what a compiler makes of the sums differs from kernel to kernel, and the keys of a
/// token must not show which one wrote them.
__device__ __forceinline__ RotatedPair rotate(float first, float second, float cosine, float sine) {
  return {fmaf(first, cosine, -__fmul_rn(second, sine)), fmaf(second, cosine, __fmul_rn(first, sine))};
}

}  // namespace inflight::cuda
