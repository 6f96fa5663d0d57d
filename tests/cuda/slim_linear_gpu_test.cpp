#include "kernels/cuda/slim_linear.h"
#include "tests/cuda/linear_harness.h"

namespace inflight::test {
namespace {

using cuda::SlimLinear;
using cuda::SlimProblem;
using cuda::SlimVariant;

constexpr int kMostOutputs = 1000;

std::string name_of(const SlimVariant& v) { return concat(v.split, " blocks, ", v.blocks_per_sm, " a multiprocessor"); }

class SlimLinearGpu : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (!IsSkipped()) slim_ = std::make_unique<SlimLinear>(gpu());
  }

  // `out` is what the product finds in its out; `x_rows`: how many rows of x it may read.
  Tensor compute(const Operands& operands, const Call& call, const SlimVariant& variant, const GpuTensor& out,
                 int x_rows) {
    const Options& o = call.options;
    slim_->run({operands.x.view().data, operands.weight.view().data, o.bias ? operands.bias.view().data : nullptr,
                out.view().data, call.m, call.n, operands.k, o.float_out, o.gated, o.activation, x_rows, o.add},
               variant);
    return out.host();
  }

  void expect_right(const Operands& operands, const Call& call, const Values& want, int x_rows = 0) {
    test::expect_right(operands, call, want, SlimLinear::variants(call.m, operands.k), name_of,
                       [&](const SlimVariant& variant, const GpuTensor& out) {
                         return compute(operands, call, variant, out, x_rows);
                       });
  }

  Random random_;
  std::unique_ptr<SlimLinear> slim_;
};

TEST_F(SlimLinearGpu, EveryVariantMatchesFloat64) {
  for (const int k : {64, 192, 1088}) {
    Operands operands(cuda::kMaxSlimRows, 400, k, random_);
    operands.sum_in_float64();
    for (const int m : {1, 8, 16, 25, 32, 33, 48, 64})
      for (const int n : {8, 136, 200})
        for (const Options& options :
             {Options{}, Options{.bias = true}, Options{.float_out = true}, Options{.bias = true, .float_out = true},
              Options{.add = true}, Options{.bias = true, .add = true}, Options{.gated = true}})
          expect_right(operands, {m, n, options}, expected(operands, {m, n, options}), cuda::kMaxSlimRows);
  }
}

// Rings that go round, last tiles with few outputs.
TEST_F(SlimLinearGpu, EveryVariantTakesEveryTail) {
  int next = 0;
  for (const int k : {512, 1024, 4096})
    for (const int m : {9, 31, 47, 63}) {
      Operands operands(m, 2 * kMostOutputs, k, random_);
      operands.sum_on_gpu();
      for (const int n : {64, 128, 384, kMostOutputs}) {
        const Activation activation = kActivations[next++ % std::size(kActivations)];
        for (const Options& options : {Options{.bias = true, .add = true}, Options{.float_out = true},
                                       Options{.gated = true, .activation = activation}})
          expect_right(operands, {m, n, options}, expected(operands, {m, n, options}));
      }
    }
}

TEST_F(SlimLinearGpu, MoreBlocksThanPlaces) {
  constexpr int kN = 40'000;
  Operands operands(64, kN, 576, random_);
  operands.sum_on_gpu();
  for (const int m : {10, 20, 40, 64}) {
    const Call call{m, kN, {.bias = true, .float_out = true}};
    expect_right(operands, call, expected(operands, call));
  }
}

TEST_F(SlimLinearGpu, AProductWaitsForTheOneBefore) {
  for (const int m : {16, 24, 48, 64})
    for (const int n : {512, 4096}) {
      Operands operands(m, n, n, random_);
      for (const SlimVariant& variant : SlimLinear::variants(m, n))
        expect_second_waits(m, n, operands, concat("M ", m, " N ", n, " by ", name_of(variant)),
                            [&](const TensorView& x, const TensorView& out) {
                              slim_->run({x.data, operands.weight.view().data, nullptr, out.data, m, n, n}, variant);
                            });
    }
}

TEST_F(SlimLinearGpu, AddsToWhatTheOneBeforeHasWritten) {
  const int n = 1024;
  for (const int m : {16, 24, 48, 64}) {
    Operands operands(m, n, n, random_);
    for (const SlimVariant& variant : SlimLinear::variants(m, n))
      expect_sum_waits(m, n, concat("M ", m, " by ", name_of(variant)), [&](const TensorView& out, bool add) {
        SlimProblem problem{operands.x.view().data, operands.weight.view().data, nullptr, out.data, m, n, n};
        problem.add = add;
        slim_->run(problem, variant);
      });
  }
}

// The rows of x behind the M that count may be read, whatever they hold.
TEST_F(SlimLinearGpu, OtherRowsDoNotMatter) {
  const int n = 200, k = 512;
  Operands operands(cuda::kMaxSlimRows, 2 * n, k, random_);
  operands.sum_in_float64();
  for (const int m : {9, 20, 33, 50}) {
    Tensor x(DType::kBfloat16, {cuda::kMaxSlimRows, k});  // NaN, as it begins
    std::memcpy(x.view().data, operands.host_x.view().data, size_t{2} * m * k);
    operands.x = GpuTensor(x);
    for (const Options& options : {Options{.bias = true}, Options{.gated = true}})
      expect_right(operands, {m, n, options}, expected(operands, {m, n, options}), cuda::kMaxSlimRows);
  }
}

TEST_F(SlimLinearGpu, SaysWhatItTakes) {
  EXPECT_TRUE(SlimLinear::takes(33, 1000, 64));
  EXPECT_TRUE(SlimLinear::takes(cuda::kMaxSlimRows, 1000, 64));
  EXPECT_FALSE(SlimLinear::takes(cuda::kMaxSlimRows + 1, 1000, 64));
  EXPECT_FALSE(SlimLinear::takes(0, 64, 64));
  EXPECT_FALSE(SlimLinear::takes(64, 100, 64));
  EXPECT_FALSE(SlimLinear::takes(64, 64, 72));
  EXPECT_FALSE(SlimLinear::takes(64, 64, 0));
  EXPECT_TRUE(SlimLinear::has({4, 2}, 64, 4096));
  EXPECT_FALSE(SlimLinear::has({3, 2}, 64, 4096));
  EXPECT_FALSE(SlimLinear::has({4, 3}, 64, 4096));
  EXPECT_FALSE(SlimLinear::has({4, 2}, 64, 192)) << "a block would have nothing to sum";
  EXPECT_TRUE(SlimLinear::has({8, 2}, 64, 4096));
  EXPECT_FALSE(SlimLinear::has({8, 2}, 32, 4096)) << "32 rows are four groups of eight";
  EXPECT_FALSE(SlimLinear::has({}, 64, 4096));
  EXPECT_FALSE(slim_->candidates(64, 4096, 4096, true).empty());
  EXPECT_TRUE(slim_->candidates(64, 4100, 4096, true).empty());
  EXPECT_EQ(
      error_of(ErrorCode::kInternal, [&] { slim_->run({nullptr, nullptr, nullptr, nullptr, 64, 64, 72}, {2, 2}); }),
      "linear: no slim kernel of 2 blocks a tile, 2 a multiprocessor, for M 64, N 64, K 72");
  SlimProblem both{nullptr, nullptr, nullptr, nullptr, 64, 64, 64};
  both.gated = both.add = true;
  EXPECT_EQ(error_of(ErrorCode::kInternal, [&] { slim_->run(both, {1, 1}); }),
            "linear: no slim kernel of 1 blocks a tile, 1 a multiprocessor, for M 64, N 64, K 64 gated added");
}

}  // namespace
}  // namespace inflight::test
