#pragma once

#include "inflight/ops/activation.h"
#include "kernels/cuda/plain_linear.h"
#include "tests/cuda/gpu_harness.h"

/// What the tests of the kinds of product share: random operands, the right results, and their comparison with what
/// every variant computes.
namespace inflight::test {

inline constexpr double kFloatBound = 5e-5, kBf16Bound = 4e-3, kGatedBound = 6e-3;
inline constexpr Activation kActivations[] = {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh,
                                              Activation::kRelu};

inline double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::kSilu: return x / (1 + std::exp(-x));
    case Activation::kGelu: return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
    case Activation::kGeluTanh: return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    case Activation::kRelu: return std::max(x, 0.0);
  }
  return std::nan("");
}

inline double rounded(double value) { return decode_bfloat16(encode_bfloat16(value)); }

/// Random operands of one K, from which the tests take the first rows, and the sums of every pair of rows.
struct Operands {
  Operands(int rows, int weight_rows, int k, Random& random)
      : k(k),
        weight_rows(weight_rows),
        host_x(Tensor::random(DType::kBfloat16, {rows, k}, random)),
        host_weight(Tensor::random(DType::kBfloat16, {weight_rows, k}, random, 0.1)),
        host_bias(Tensor::random(DType::kBfloat16, {weight_rows}, random)),
        x(host_x),
        weight(host_weight),
        bias(host_bias) {}

  double sum(int row, int column) const { return sums[static_cast<size_t>(row) * weight_rows + column]; }

  // A row of float64 sums a pair.
  void sum_in_float64() {
    const Values a = host_x.values(), b = host_weight.values();
    sums.resize(host_x.size() / k * weight_rows);
    for (size_t i = 0; i < sums.size(); ++i) {
      const double* row = &a[i / weight_rows * k];
      sums[i] = std::inner_product(row, row + k, &b[i % weight_rows * k], 0.0);
    }
  }
  // By the plain kernel, where float64 would take minutes.
  void sum_on_gpu() {
    const int64_t rows = host_x.size() / k;
    const GpuTensor out(DType::kFloat32, {rows, weight_rows});
    cuda::plain_linear(x.view().data, weight.view().data, nullptr, out.view().data, {rows, weight_rows, k, true},
                       gpu());
    sums = out.host().values();
  }

  int k, weight_rows;
  Tensor host_x, host_weight, host_bias;
  GpuTensor x, weight, bias;
  Values sums;
};

struct Options {
  bool gated = false, bias = false, float_out = false, add = false;
  Activation activation = Activation::kSilu;
};

struct Call {
  int m, n;
  Options options{};
};

/// What out holds before a product that is added, exact in bfloat16.
inline double residual(int64_t i) { return static_cast<double>(i % 251) / 64 - 2; }

inline Values expected(const Operands& operands, const Call& call) {
  const Options& o = call.options;
  Values out;
  for (int i = 0; i < call.m; ++i)
    for (int j = 0; j < call.n; ++j) {
      const double sum = operands.sum(i, j) + (o.bias ? operands.host_bias[j] : 0.0);
      if (o.gated)
        out.push_back(activated(o.activation, rounded(sum)) * rounded(operands.sum(i, call.n + j)));
      else
        out.push_back(o.add ? rounded(sum) + residual(static_cast<int64_t>(out.size())) : sum);
    }
  return out;
}

/// Compares what `run(variant, out)` computes with `want`, twice for each of the `variants`; run gives out back.
template <typename Variants, typename Name, typename Run>
void expect_right(const Operands& operands, const Call& call, const Values& want, const Variants& variants,
                  const Name& name_of, const Run& run) {
  EXPECT_FALSE(std::empty(variants));
  const Options& o = call.options;
  Tensor before(o.float_out ? DType::kFloat32 : DType::kBfloat16, {call.m, call.n});
  for (int64_t i = 0; o.add && i < before.size(); ++i) before.set(i, residual(i));
  const double bound = o.gated ? kGatedBound : o.float_out ? kFloatBound : kBf16Bound;
  for (const auto& variant : variants) {
    const std::string what = concat("M ", call.m, " N ", call.n, " K ", operands.k, o.gated ? " gated" : "",
                                    o.bias ? " bias" : "", o.add ? " added" : "", " by ", name_of(variant));
    const Tensor out = run(variant, GpuTensor(before));
    expect_close(out, want, bound, what);
    EXPECT_TRUE(out.bits() == run(variant, GpuTensor(before)).bits()) << what << " does not repeat its bits";
  }
}

/// Captures what `work` does into a graph, where a kernel may start while the one before it runs, and replays it.
template <typename Work>
void replay_in_graph(const Work& work) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  ASSERT_EQ(cudaStreamBeginCapture(gpu().stream(), cudaStreamCaptureModeGlobal), cudaSuccess);
  work();
  ASSERT_EQ(cudaStreamEndCapture(gpu().stream(), &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  ASSERT_EQ(cudaGraphLaunch(executable, gpu().stream()), cudaSuccess);
  gpu().synchronize();
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

/// A chain of two products, the second of what the first computes, which it must not read before it has been written.
/// x is [m, n], the weight [n, n]; run(x, out) computes one.
template <typename Run>
void expect_second_waits(int m, int n, const Operands& operands, const std::string& what, const Run& run) {
  const GpuTensor middle(DType::kBfloat16, {m, n}), out(DType::kBfloat16, {m, n});
  run(operands.x.view(), middle.view());
  gpu().synchronize();
  run(middle.view(), out.view());
  const std::string want = out.host().bits();
  gpu().copy(middle.view().data, operands.x.view().data, middle.view().bytes());
  gpu().synchronize();
  replay_in_graph([&] {
    run(operands.x.view(), middle.view());
    run(middle.view(), out.view());
  });
  EXPECT_TRUE(out.host().bits() == want) << what;
}

/// The same where the second is added to what the first computes; run(out, add) computes one.
template <typename Run>
void expect_sum_waits(int m, int n, const std::string& what, const Run& run) {
  const GpuTensor one(DType::kBfloat16, {m, n}), other(DType::kBfloat16, {m, n});
  run(one.view(), false);
  gpu().synchronize();
  run(one.view(), true);
  const std::string want = one.host().bits();
  replay_in_graph([&] {
    run(other.view(), false);
    run(other.view(), true);
  });
  EXPECT_TRUE(other.host().bits() == want) << what;
}

}  // namespace inflight::test
