#include "kernels/cuda/plain_linear.h"
#include "kernels/cuda/tiled_linear.h"
#include "tests/cuda/gpu_harness.h"

namespace inflight::test {
namespace {

using cuda::TiledVariant;

constexpr double kFloatBound = 5e-5, kBf16Bound = 4e-3, kGatedBound = 6e-3;
constexpr int kMostRows = 1000, kMostOutputs = 1536;
constexpr Activation kActivations[] = {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh, Activation::kRelu};

std::string name_of(const TiledVariant& v) { return concat(v.rows, " x ", v.columns, ", clusters of ", v.cluster); }

double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::kSilu: return x / (1 + std::exp(-x));
    case Activation::kGelu: return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
    case Activation::kGeluTanh: return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    case Activation::kRelu: return std::max(x, 0.0);
  }
  return std::nan("");
}

double rounded(double value) { return decode_bfloat16(encode_bfloat16(value)); }

// Random operands of one K, from which the tests take the first rows, and the sums of every pair of rows.
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

// What out holds before a product that is added, exact in bfloat16.
double residual(int64_t i) { return static_cast<double>(i % 251) / 64 - 2; }

Values expected(const Operands& operands, const Call& call) {
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

class TiledLinearGpu : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (!IsSkipped()) tiled_ = std::make_unique<cuda::TiledLinear>(gpu());
  }

  // `out` is what the product finds in its out.
  Tensor compute(const Operands& operands, const Call& call, const TiledVariant& variant, const GpuTensor& out) {
    const Options& o = call.options;
    tiled_->run({operands.x.view().data, operands.weight.view().data, o.bias ? operands.bias.view().data : nullptr,
                 out.view().data, call.m, call.n, operands.k, o.float_out, o.gated, o.activation, o.add},
                variant);
    return out.host();
  }

  void expect_right(const Operands& operands, const Call& call, const Values& want) {
    const Options& o = call.options;
    Tensor before(o.float_out ? DType::kFloat32 : DType::kBfloat16, {call.m, call.n});
    for (int64_t i = 0; o.add && i < before.size(); ++i) before.set(i, residual(i));
    const double bound = o.gated ? kGatedBound : o.float_out ? kFloatBound : kBf16Bound;
    for (const TiledVariant& variant : cuda::TiledLinear::variants()) {
      const std::string what = concat("M ", call.m, " N ", call.n, " K ", operands.k, o.gated ? " gated" : "",
                                      o.bias ? " bias" : "", o.add ? " added" : "", " by ", name_of(variant));
      const Tensor out = compute(operands, call, variant, GpuTensor(before));
      expect_close(out, want, bound, what);
      EXPECT_TRUE(out.bits() == compute(operands, call, variant, GpuTensor(before)).bits())
          << what << " does not repeat its bits";
    }
  }

  Random random_;
  std::unique_ptr<cuda::TiledLinear> tiled_;
};

TEST_F(TiledLinearGpu, EveryVariantMatchesFloat64) {
  for (const int k : {64, 192, 1088}) {
    Operands operands(200, 400, k, random_);
    operands.sum_in_float64();
    for (const int m : {1, 33, 200})
      for (const int n : {8, 136, 200})
        for (const Options& options :
             {Options{}, Options{.bias = true}, Options{.float_out = true}, Options{.bias = true, .float_out = true},
              Options{.add = true}, Options{.bias = true, .add = true}, Options{.gated = true}})
          expect_right(operands, {m, n, options}, expected(operands, {m, n, options}));
  }
}

TEST_F(TiledLinearGpu, EveryVariantTakesEveryTail) {
  int next = 0;
  for (const int k : {64, 128, 192, 4096}) {
    Operands operands(kMostRows, 2 * kMostOutputs, k, random_);
    operands.sum_on_gpu();
    for (const int m : {33, 64, 65, 127, 128, 129, 200, 512, kMostRows})
      for (const int n : {64, 128, 136, 256, 384, 1000, kMostOutputs}) {
        if (m * n > 200 * 1000 && next++ % 6 != 0) continue;  // a comparison on the host takes long
        const Activation activation = kActivations[next++ % std::size(kActivations)];
        for (const Options& options :
             {Options{.bias = true}, Options{.float_out = true}, Options{.gated = true, .activation = activation}})
          expect_right(operands, {m, n, options}, expected(operands, {m, n, options}));
      }
  }
}

// More tiles than blocks: rings and barriers go on from tile to tile, the last wave is ragged.
TEST_F(TiledLinearGpu, BlocksTakeTileAfterTile) {
  constexpr int kM = 1100, kN = 2048 + 8;
  for (const int k : {128, 640}) {
    Operands operands(kM, 2 * kN, k, random_);
    operands.sum_on_gpu();
    for (const Call& call : {Call{kM, 2 * kN, {.bias = true, .add = true}},
                             Call{kM, 2 * kN, {.bias = true, .float_out = true}}, Call{kM, kN, {.gated = true}}})
      expect_right(operands, call, expected(operands, call));
  }
}

TEST_F(TiledLinearGpu, RowsOfSeveralBands) {
  Operands operands(4200, 520, 64, random_);
  operands.sum_on_gpu();
  const Call call{4200, 520};
  expect_right(operands, call, expected(operands, call));
}

// The second product may start while the first one runs, and must not read what that one has not written yet.
TEST_F(TiledLinearGpu, AProductWaitsForTheOneBefore) {
  const int m = 700, n = 640;
  Operands operands(m, n, n, random_);
  for (const TiledVariant& variant : cuda::TiledLinear::variants()) {
    const GpuTensor middle(DType::kBfloat16, {m, n}), out(DType::kBfloat16, {m, n});
    const auto run = [&](const TensorView& x, const TensorView& to) {
      tiled_->run({x.data, operands.weight.view().data, nullptr, to.data, m, n, n}, variant);
    };
    run(operands.x, middle);
    gpu().synchronize();
    run(middle, out);
    const std::string want = out.host().bits();
    gpu().copy(middle.view().data, operands.x.view().data, middle.view().bytes());
    gpu().synchronize();
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    ASSERT_EQ(cudaStreamBeginCapture(gpu().stream(), cudaStreamCaptureModeGlobal), cudaSuccess);
    run(operands.x, middle);
    run(middle, out);
    ASSERT_EQ(cudaStreamEndCapture(gpu().stream(), &graph), cudaSuccess);
    ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
    ASSERT_EQ(cudaGraphLaunch(executable, gpu().stream()), cudaSuccess);
    EXPECT_TRUE(out.host().bits() == want) << name_of(variant);
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
  }
}

TEST_F(TiledLinearGpu, SaysWhatItTakes) {
  using cuda::TiledLinear;
  EXPECT_TRUE(TiledLinear::takes(33, 1000, 64));
  EXPECT_FALSE(TiledLinear::takes(0, 64, 64));
  EXPECT_FALSE(TiledLinear::takes(64, 100, 64));
  EXPECT_FALSE(TiledLinear::takes(64, 64, 72));
  EXPECT_FALSE(TiledLinear::takes(64, 64, 0));
  EXPECT_TRUE(TiledLinear::has({128, 256, 2}));
  EXPECT_FALSE(TiledLinear::has({128, 256, 3}));
  EXPECT_FALSE(TiledLinear::has({}));
  EXPECT_FALSE(tiled_->candidates(512, 4096, 4096, true).empty());
  EXPECT_TRUE(tiled_->candidates(512, 4100, 4096, true).empty());
  for (const TiledVariant& variant : tiled_->candidates(64, 4096, 4096, false))
    EXPECT_EQ(variant.cluster, 1) << "a single row of tiles has nothing to share";
  EXPECT_EQ(error_of(ErrorCode::kInternal,
                     [&] { tiled_->run({nullptr, nullptr, nullptr, nullptr, 64, 64, 72}, {128, 256, 2}); }),
            "linear: no tiled kernel of 128 x 256, clusters of 2 for M 64, N 64, K 72");
}

}  // namespace
}  // namespace inflight::test
