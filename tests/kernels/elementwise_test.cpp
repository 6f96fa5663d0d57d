#include "tests/kernels/harness.h"

namespace inflight::test {
namespace {

// A few units in the last place of a float32, of the worst element: the smallest sizes have nothing to average over.
constexpr double kBound = 2e-6;
constexpr int kSizes[] = {1, 5, 8, 40, 257, 1024, 4099};

double reference(Activation activation, double x) {
  switch (activation) {
    case Activation::kSilu: return x / (1 + std::exp(-x));
    case Activation::kGelu: return x * std::erfc(-x / std::sqrt(2.0)) / 2;
    case Activation::kGeluTanh: return x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))) / 2;
    case Activation::kRelu: return std::max(x, 0.0);
  }
  return std::nan("");
}

constexpr Activation kActivations[] = {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh, Activation::kRelu};

TEST(Activation, MatchesReference) {
  Random random;
  for (const Activation activation : kActivations)
    for (const int n : kSizes) {
      const Tensor x = Tensor::random(DType::kFloat32, {3, n}, random, 3);
      Tensor out(DType::kFloat32, {3, n});
      ops().activation({x, out, activation}, context());
      Values want = x.values();
      for (double& value : want) value = reference(activation, value);
      expect_close(out, want, kBound, concat("activation ", static_cast<int>(activation)));
      ops().activation({x, x, activation}, context());
      EXPECT_EQ(x.bits(), out.bits()) << "in place";
    }
}

TEST(Activation, GatedMatchesReference) {
  Random random;
  for (const Activation activation : kActivations)
    for (const int n : kSizes) {
      const int m = random.integer(1, 67);
      const Tensor x = Tensor::random(DType::kFloat32, {m, 2 * n}, random, 3);
      Tensor out(DType::kFloat32, {m, n});
      ops().gated_activation({x, out, activation}, context());
      Values want(m * n);
      for (int i = 0; i < m * n; ++i) {
        const int gate = i / n * 2 * n + i % n;
        want[i] = reference(activation, x[gate]) * x[gate + n];
      }
      expect_close(out, want, kBound, concat("activation ", static_cast<int>(activation)));
    }
}

TEST(Activation, RowsDoNotDependOnTheBatch) {
  Random random;
  for (const Activation activation : kActivations) {
    const int m = 41, n = 1003;
    const Tensor x = Tensor::random(DType::kFloat32, {m, n}, random, 3);
    Tensor whole(DType::kFloat32, {m, n}), row(DType::kFloat32, {1, n});
    ops().activation({x, whole, activation}, context(3));
    for (int i = 0; i < m; ++i) {
      ops().activation({TensorView(x.view().as<float>() + i * n, DType::kFloat32, {1, n}), row, activation},
                       context(1));
      ASSERT_EQ(row.bits(), whole.bits(i, i + 1));
    }
  }
}

// silu(x) / x is the sigmoid, through which the vectorised exp shows on its whole range.
TEST(Activation, ExpIsAccurateEverywhere) {
  const int n = 400001;
  Tensor x(DType::kFloat32, {1, n}), out(DType::kFloat32, {1, n});
  for (int i = 0; i < n; ++i) x.set(i, (i - n / 2) * (86.0 / (n / 2)));
  ops().activation({x, out, Activation::kSilu}, context());
  double worst = 0;
  for (int i = 0; i < n; ++i) {
    const double want = reference(Activation::kSilu, x[i]);
    if (want != 0) worst = std::max(worst, std::fabs(out[i] / want - 1));
  }
  EXPECT_LT(worst, 4e-7);
}

TEST(Activation, SiluAtTheEndsOfTheRange) {
  const float infinity = std::numeric_limits<float>::infinity();
  Tensor x(DType::kFloat32, {1, 6}), out(DType::kFloat32, {1, 6});
  const double inputs[] = {-1000, -100, 0, 100, infinity, std::nan("")};
  for (int i = 0; i < 6; ++i) x.set(i, inputs[i]);
  ops().activation({x, out, Activation::kSilu}, context());
  EXPECT_EQ(out[0], 0);
  EXPECT_NEAR(out[1], 0, 1e-30);
  EXPECT_EQ(out[2], 0);
  EXPECT_EQ(out[3], 100);
  EXPECT_EQ(out[4], infinity);
  EXPECT_TRUE(std::isnan(out[5]));
}

TEST(Add, AddsInPlaceToo) {
  Random random;
  for (const int n : kSizes) {
    const Tensor a = Tensor::random(DType::kFloat32, {19, n}, random),
                 b = Tensor::random(DType::kFloat32, {19, n}, random);
    Tensor out(DType::kFloat32, {19, n});
    ops().add({a, b, out}, context());
    for (int i = 0; i < 19 * n; ++i) ASSERT_EQ(out[i], static_cast<float>(a[i]) + static_cast<float>(b[i]));
    EXPECT_TRUE(out.guard_intact());
    ops().add({a, b, a}, context());
    EXPECT_EQ(a.bits(), out.bits());
  }
}

TEST(Elementwise, NamesWhatDoesNotFit) {
  const Tensor x(DType::kFloat32, {2, 8}), out(DType::kFloat32, {2, 3});
  EXPECT_EQ(error_of(ErrorCode::kInvalidArgument, [&] { ops().gated_activation({x, out}, context()); }),
            "gated_activation: x is [2, 8] float32, wanted [M=2, 2 N=6] float32");
  EXPECT_EQ(error_of(ErrorCode::kInvalidArgument, [&] { ops().add({x, out, x}, context()); }),
            "add: b is [2, 3] float32, wanted [M=2, N=8] float32");
}

}  // namespace
}  // namespace inflight::test
