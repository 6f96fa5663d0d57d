// Elementwise: a thread computes groups of eight neighbouring elements (of one where sizes or addresses do not allow
// that) in float32 and rounds them once.

#include <algorithm>
#include <iterator>

#include "kernels/cuda/arguments.h"
#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"

namespace inflight::cuda {
namespace {

constexpr int kThreads = 256;

// The hardware's own functions, within 2 units in the last place of float32 or so; tiny numbers become 0.
__device__ __forceinline__ float reciprocal(float x) {
  asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
}

constexpr float kLog2E = 1.44269504f;

// 2 to the power of x.
__device__ __forceinline__ float power_of_two(float x) {
  asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
}

__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1.0f + power_of_two(-kLog2E * x)); }

struct Silu {
  static __device__ __forceinline__ float apply(float x) { return x * sigmoid(x); }
};

// x · erfc(|x| / √2) / 2 on the negative side, by a Chebyshev fit of ln(erfc(z) exp(z²) / t), t = 1 / (1 + z / 2),
// within 1.2e-7 of erfc also in its tail (Press et al. 1992, "Numerical Recipes", 6.2). erff takes so many instructions
// that memory would wait for them.
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

// (1 + tanh u) / 2 is sigmoid(2 u), without the cancellation at negative u.
struct GeluTanh {
  static __device__ __forceinline__ float apply(float x) {
    constexpr float kTwoSqrtTwoOverPi = 1.59576912f;
    return x * sigmoid(kTwoSqrtTwoOverPi * (x + 0.044715f * x * x * x));
  }
};

struct Relu {
  static __device__ __forceinline__ float apply(float x) { return x < 0.0f ? 0.0f : x; }
};

// What is made of an element of each input; a unary one takes no second input.
template <typename Function>
struct Activated {
  static constexpr bool kUnary = true;
  static __device__ __forceinline__ float apply(float a, float) { return Function::apply(a); }
};

template <typename Function>
struct Gated {
  static constexpr bool kUnary = false;
  static __device__ __forceinline__ float apply(float a, float b) { return Function::apply(a) * b; }
};

struct Sum {
  static constexpr bool kUnary = false;
  static __device__ __forceinline__ float apply(float a, float b) { return a + b; }
};

// Rows of the inputs begin `stride` elements apart, rows of out `size`.
struct Rows {
  const void* a;
  const void* b;
  void* out;
  int64_t count, size, stride;
};

// Groups of elements that a thread takes, so that it has two loads in flight.
template <typename Operation>
constexpr int kGroups = Operation::kUnary ? 2 : 1;

// A row takes `chunks` blocks.
template <int kWidth, typename Operation>
__global__ void __launch_bounds__(kThreads) elementwise(const Rows rows, unsigned chunks) {
  using Group = Bf16Group<kWidth>;
  using Bits = typename Group::Bits;
  const unsigned row = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
  const int64_t groups = rows.size / kWidth;
  const int64_t first = static_cast<int64_t>(chunk) * blockDim.x * kGroups<Operation> + threadIdx.x;
  const auto* from_a = static_cast<const Bits*>(rows.a) + row * (rows.stride / kWidth);
  const auto* from_b = static_cast<const Bits*>(rows.b) + row * (rows.stride / kWidth);
  Bits* to = static_cast<Bits*>(rows.out) + row * groups;
  wait_and_let_next_start();
  Bits a_bits[kGroups<Operation>], b_bits[kGroups<Operation>];
#pragma unroll
  for (int g = 0; g < kGroups<Operation>; ++g) {
    const int64_t i = first + g * blockDim.x;
    a_bits[g] = i < groups ? from_a[i] : Bits{};
    b_bits[g] = i < groups && !Operation::kUnary ? from_b[i] : Bits{};
  }
#pragma unroll
  for (int g = 0; g < kGroups<Operation>; ++g) {
    const int64_t i = first + g * blockDim.x;
    float a[kWidth], b[kWidth];
    Group::unpack(a_bits[g], a);
    Group::unpack(b_bits[g], b);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) a[j] = Operation::apply(a[j], b[j]);
    if (i < groups) to[i] = Group::pack(a);
  }
}

struct Kernel {
  void (*run)(Rows, unsigned);
  int groups;  // of a thread
};

template <int kWidth, typename Operation>
constexpr Kernel kKernel = {elementwise<kWidth, Operation>, kGroups<Operation>};

// In the order of Activation's values.
template <int kWidth, template <typename> typename Use>
constexpr Kernel kActivations[] = {kKernel<kWidth, Use<Silu>>, kKernel<kWidth, Use<Gelu>>,
                                   kKernel<kWidth, Use<GeluTanh>>, kKernel<kWidth, Use<Relu>>};

template <template <typename> typename Use>
Kernel kernel_of(Activation activation, bool vectors) {
  const auto index = static_cast<size_t>(activation);
  check(index < std::size(kActivations<1, Use>), ErrorCode::kUnsupported, "activation: no activation number ", index);
  return vectors ? kActivations<kVectorSize, Use>[index] : kActivations<1, Use>[index];
}

bool fit_vectors(const Rows& rows) {
  return allows_vectors(static_cast<size_t>(rows.size) * size_of(DType::kBfloat16), {rows.a, rows.b, rows.out});
}

void launch_elementwise(Kernel kernel, const Rows& rows, bool vectors, DeviceContext& device) {
  const int64_t groups = vectors ? rows.size / kVectorSize : rows.size;
  if (groups == 0) return;
  const int64_t threads = std::min<int64_t>(kThreads, divide_up(groups, 32) * 32);
  const int64_t chunks = divide_up(groups, threads * kernel.groups);
  launch(kernel.run, static_cast<unsigned>(rows.count * chunks), static_cast<unsigned>(threads), 0,
         cuda_context(device), rows, static_cast<unsigned>(chunks));
}

}  // namespace

void activation(const ActivationArgs& args, DeviceContext& device) {
  Dim m("M"), n("N");
  Signature("activation").view("x", args.x, {m, n}, kBf16).view("out", args.out, {m, n}, kBf16);
  const Rows rows{args.x.data, nullptr, args.out.data, 1, m * n, m * n};
  const bool vectors = fit_vectors(rows);
  launch_elementwise(kernel_of<Activated>(args.activation, vectors), rows, vectors, device);
}

void gated_activation(const GatedActivationArgs& args, DeviceContext& device) {
  Dim m("M"), n("N");
  Signature("gated_activation").view("out", args.out, {m, n}, kBf16);
  Dim two_n("2 N", 2 * n);
  Signature("gated_activation").view("x", args.x, {m, two_n}, kBf16);
  const Rows rows{args.x.data, args.x.as<uint16_t>() + n, args.out.data, m, n, two_n};
  const bool vectors = fit_vectors(rows);
  launch_elementwise(kernel_of<Gated>(args.activation, vectors), rows, vectors, device);
}

void add(const AddArgs& args, DeviceContext& device) {
  Dim m("M"), n("N");
  Signature("add")
      .view("a", args.a, {m, n}, kBf16)
      .view("b", args.b, {m, n}, kBf16)
      .view("out", args.out, {m, n}, kBf16);
  const Rows rows{args.a.data, args.b.data, args.out.data, 1, m * n, m * n};
  const bool vectors = fit_vectors(rows);
  launch_elementwise(vectors ? kKernel<kVectorSize, Sum> : kKernel<1, Sum>, rows, vectors, device);
}

}  // namespace inflight::cuda
