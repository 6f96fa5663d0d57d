#pragma once

namespace inflight::cuda {

/// The hardware's own functions, within 2 units in the last place of float32 or so; tiny numbers become 0.
__device__ __forceinline__ float reciprocal(float x) {
  asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
}

inline constexpr float kLog2E = 1.44269504f;

/// 2 to the power of x.
__device__ __forceinline__ float power_of_two(float x) {
  asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
}

__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1.0f + power_of_two(-kLog2E * x)); }

/// What an element becomes.
struct Silu {
  static __device__ __forceinline__ float apply(float x) { return x * sigmoid(x); }
};

/// x · erfc(|x| / √2) / 2 on the negative side, by a Chebyshev fit of ln(erfc(z) exp(z²) / t), t = 1 / (1 + z / 2),
/// within 1.2e-7 of erfc also in its tail (Press et al. 1992, "Numerical Recipes", 6.2). erff takes so many
/// instructions that memory would wait for them.
struct Gelu {
  static __device__ __forceinline__ float apply(float x) {
    constexpr float kFit[] = {0.17087277f,  -0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f,
                              -0.18628806f, 0.09678418f,  0.37409196f, 1.00002368f,  -1.26551223f};
    const float t = reciprocal(1.0f + 0.35355339f * fabsf(x));
    float exponent = 0.0f;
#pragma unroll
    for (const float coefficient : kFit) exponent = fmaf(exponent, t, coefficient * kLog2E);
    exponent = fmaf(x * x, -0.5f * kLog2E, exponent - 1.0f);  // - 1 halves
    const float tail = x * t * power_of_two(exponent);
    return x < 0.0f ? tail : x - tail;
  }
};

/// (1 + tanh u) / 2 is sigmoid(2 u), without the cancellation at negative u.
struct GeluTanh {
  static __device__ __forceinline__ float apply(float x) {
    constexpr float kTwoSqrtTwoOverPi = 1.59576912f;
    return x * sigmoid(kTwoSqrtTwoOverPi * (x + 0.044715f * x * x * x));
  }
};

struct Relu {
  static __device__ __forceinline__ float apply(float x) { return x < 0.0f ? 0.0f : x; }
};

}  // namespace inflight::cuda
