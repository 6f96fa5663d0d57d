#include "tests/kernels/harness.h"

namespace inflight::test {
namespace {

constexpr int kSizes[] = {1, 7, 8, 100, 256, 1027};
constexpr float kEpsilon = 1e-5f;

// Layer norm, or RMS norm without `centered`.
Values reference(const Values& x, int64_t size, const Tensor& weight, const Tensor* bias, bool centered) {
  Values out(x.size());
  for (size_t row = 0; row < x.size(); row += size) {
    double mean = 0, square = 0;
    for (int64_t i = 0; i < size && centered; ++i) mean += x[row + i] / size;
    for (int64_t i = 0; i < size; ++i) square += (x[row + i] - mean) * (x[row + i] - mean) / size;
    for (int64_t i = 0; i < size; ++i)
      out[row + i] = (x[row + i] - mean) / std::sqrt(square + kEpsilon) * weight[i] + (bias ? (*bias)[i] : 0);
  }
  return out;
}

Values sum(const Tensor& a, const Tensor& b) {
  Values out = a.values();
  for (size_t i = 0; i < out.size(); ++i) out[i] += b[i];
  return out;
}

TEST(Norm, RmsMatchesReference) {
  Random random;
  for (const DType dtype : kRealTypes)
    for (const int size : kSizes) {
      const int m = random.integer(1, 67);
      const Tensor x = Tensor::random(DType::kFloat32, {m, size}, random);
      const Tensor weight = Tensor::random(dtype, {size}, random);
      Tensor out(DType::kFloat32, {m, size});
      ops().rms_norm({x, {}, weight, out, kEpsilon}, context());
      expect_close(out, reference(x.values(), size, weight, nullptr, false), 5e-7);
      ops().rms_norm({x, {}, weight, x, kEpsilon}, context());
      EXPECT_EQ(x.bits(), out.bits()) << "in place";
    }
}

TEST(Norm, RmsAddsTheResidual) {
  Random random;
  for (const int size : kSizes) {
    const Tensor x = Tensor::random(DType::kFloat32, {5, size}, random);
    const Tensor residual = Tensor::random(DType::kFloat32, {5, size}, random);
    const Tensor weight = Tensor::random(DType::kFloat32, {size}, random);
    const Values added = sum(x, residual);
    Tensor out(DType::kFloat32, {5, size});
    ops().rms_norm({x, residual, weight, out, kEpsilon}, context());
    expect_close(residual, added, 1e-7, "residual");
    expect_close(out, reference(added, size, weight, nullptr, false), 5e-7);
  }
}

TEST(Norm, LayerMatchesReference) {
  Random random;
  for (const DType dtype : kRealTypes)
    for (const int size : {7, 8, 100, 256, 1027}) {
      const int m = random.integer(1, 67);
      Tensor x = Tensor::random(DType::kFloat32, {m, size}, random);
      for (int64_t i = 0; i < x.size(); ++i) x.set(i, x[i] + 3);
      const Tensor residual = Tensor::random(DType::kFloat32, {m, size}, random);
      const Tensor weight = Tensor::random(dtype, {size}, random), bias = Tensor::random(dtype, {size}, random);
      Tensor out(DType::kFloat32, {m, size});
      ops().layer_norm({x, {}, weight, {}, out, kEpsilon}, context());
      expect_close(out, reference(x.values(), size, weight, nullptr, true), 2e-6, "no bias");
      const Values added = sum(x, residual);
      ops().layer_norm({x, residual, weight, bias, out, kEpsilon}, context());
      expect_close(residual, added, 1e-7, "residual");
      expect_close(out, reference(added, size, weight, &bias, true), 2e-6, "bias and residual");
    }
}

TEST(Norm, RowsDoNotDependOnTheBatch) {
  Random random;
  const int m = 131, size = 517;
  const Tensor x = Tensor::random(DType::kFloat32, {m, size}, random);
  const Tensor weight = Tensor::random(DType::kBfloat16, {size}, random);
  Tensor rms(DType::kFloat32, {m, size}), layer(DType::kFloat32, {m, size}), row(DType::kFloat32, {1, size});
  ops().rms_norm({x, {}, weight, rms}, context(3));
  ops().layer_norm({x, {}, weight, {}, layer}, context(3));
  for (int i = 0; i < m; ++i) {
    const TensorView one(x.view().as<float>() + i * size, DType::kFloat32, {1, size});
    ops().rms_norm({one, {}, weight, row}, context(1));
    ASSERT_EQ(row.bits(), rms.bits(i, i + 1));
    ops().layer_norm({one, {}, weight, {}, row}, context(1));
    ASSERT_EQ(row.bits(), layer.bits(i, i + 1));
  }
}

TEST(Norm, NamesWhatDoesNotFit) {
  const Tensor x(DType::kFloat32, {2, 4}), weight(DType::kFloat32, {5});
  EXPECT_EQ(error_of(ErrorCode::kInvalidArgument, [&] { ops().rms_norm({x, {}, weight, x}, context()); }),
            "rms_norm: weight is [5] float32, wanted [H=4] float32, float16 or bfloat16");
}

}  // namespace
}  // namespace inflight::test
