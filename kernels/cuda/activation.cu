// Elementwise: a thread computes groups of eight neighbouring elements (of one where sizes or addresses do not allow
// that) in float32 and rounds them once.

#include <algorithm>
#include <iterator>

#include "kernels/cuda/activation_functions.cuh"
#include "kernels/cuda/arguments.h"
#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"

namespace inflight::cuda {
namespace {

constexpr int kThreads = 256;

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
