#include "kernels/cuda/tiled_linear.h"
#include "tests/cuda/linear_harness.h"

namespace inflight::test {
namespace {

using cuda::TiledVariant;

constexpr int kMostRows = 1000, kMostOutputs = 1536;

std::string name_of(const TiledVariant& v) { return concat(v.rows, " x ", v.columns, ", clusters of ", v.cluster); }

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
    test::expect_right(
        operands, call, want, cuda::TiledLinear::variants(), name_of,
        [&](const TiledVariant& variant, const GpuTensor& out) { return compute(operands, call, variant, out); });
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

TEST_F(TiledLinearGpu, AProductWaitsForTheOneBefore) {
  const int m = 700, n = 640;
  Operands operands(m, n, n, random_);
  for (const TiledVariant& variant : cuda::TiledLinear::variants())
    expect_second_waits(m, n, operands, name_of(variant), [&](const TensorView& x, const TensorView& out) {
      tiled_->run({x.data, operands.weight.view().data, nullptr, out.data, m, n, n}, variant);
    });
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
