#include "tests/kernels/harness.h"

namespace inflight::test {
namespace {

// The sums, or the sums of their terms' sizes.
Values reference(const Tensor& x, const Tensor& weight, const Tensor* bias, bool sizes = false) {
  const auto term = [sizes](double value) { return sizes ? std::fabs(value) : value; };
  const int64_t m = x.view().shape[0], k = x.view().shape[1], n = weight.view().shape[0];
  Values out(m * n);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = bias ? term((*bias)[j]) : 0;
      for (int64_t l = 0; l < k; ++l) sum += term(x[i * k + l] * weight[j * k + l]);
      out[i * n + j] = sum;
    }
  return out;
}

Tensor run(const TensorView& x, const Tensor& weight, const TensorView& bias, int threads) {
  Tensor out(DType::kFloat32, {x.shape[0], weight.view().shape[0]});
  ops().linear({x, weight, bias, out}, context(threads));
  return out;
}

// Rounding errors are as large as the terms: terms that cancel out leave them standing in a small sum.
void expect_sums(const Tensor& got, const Tensor& x, const Tensor& weight, const Tensor* bias,
                 const std::string& what) {
  const Values want = reference(x, weight, bias), sizes = reference(x, weight, bias, true);
  const double scale = norm(sizes) / std::max(norm(want), 1e-30);
  expect_close(got, want, 1e-6 * scale, what);
}

TEST(Linear, MatchesReference) {
  Random random;
  for (const DType dtype : kRealTypes)
    for (const int m : {1, 2, 3, 4, 5, 7, 32, 67})
      for (const auto& [n, k] : {std::pair{1, 1}, {7, 13}, {9, 64}, {65, 100}, {130, 257}}) {
        const Tensor x = Tensor::random(DType::kFloat32, {m, k}, random);
        const Tensor weight = Tensor::random(dtype, {n, k}, random);
        const Tensor bias = Tensor::random(dtype, {n}, random);
        const std::string what = concat(m, "x", n, "x", k);
        expect_sums(run(x, weight, bias, 2), x, weight, &bias, what);
        expect_sums(run(x, weight, {}, 2), x, weight, nullptr, what);
      }
}

TEST(Linear, BigEnoughToThreadAndBlock) {
  Random random;
  const Tensor x = Tensor::random(DType::kFloat32, {199, 515}, random);
  const Tensor weight = Tensor::random(DType::kBfloat16, {301, 515}, random);
  expect_close(run(x, weight, {}, 3), reference(x, weight, nullptr), 1e-6);
}

TEST(Linear, RowsDoNotDependOnTheBatchOrTheThreads) {
  Random random;
  for (const DType dtype : kRealTypes)
    for (const int k : {5, 64, 771}) {
      const int rows = 103, n = 333;
      const Tensor x = Tensor::random(DType::kFloat32, {rows, k}, random);
      const Tensor weight = Tensor::random(dtype, {n, k}, random);
      const Tensor bias = Tensor::random(dtype, {n}, random);
      const Tensor whole = run(x, weight, bias, 1);
      for (const int threads : {2, 3})
        for (int begin = 0, m = 1; begin + m <= rows; begin += m, ++m) {
          const TensorView part(x.view().as<float>() + begin * k, DType::kFloat32, {m, k});
          ASSERT_EQ(run(part, weight, bias, threads).bits(), whole.bits(begin, begin + m))
              << "rows " << begin << " to " << begin + m << " of K " << k;
        }
    }
}

TEST(Linear, TakesNoRows) {
  const Tensor x(DType::kFloat32, {0, 4}), weight(DType::kFloat32, {3, 4}), out(DType::kFloat32, {0, 3});
  EXPECT_NO_THROW(ops().linear({x, weight, {}, out}, context()));
}

TEST(Linear, NamesWhatDoesNotFit) {
  const Tensor x(DType::kFloat32, {2, 4}), weight(DType::kFloat32, {3, 5}), out(DType::kFloat32, {2, 3});
  EXPECT_EQ(error_of(ErrorCode::kInvalidArgument, [&] { ops().linear({x, weight, {}, out}, context()); }),
            "linear: weight is [3, 5] float32, wanted [N, K=4] float32, float16 or bfloat16");
  const Tensor bytes(DType::kUInt8, {3, 4});
  EXPECT_EQ(error_of(ErrorCode::kUnsupported, [&] { ops().linear({x, bytes, {}, out}, context()); }),
            "linear: weight is [3, 4] uint8, wanted [N, K=4] float32, float16 or bfloat16");
  const Tensor half(DType::kFloat16, {2, 4});
  EXPECT_EQ(error_of(ErrorCode::kUnsupported, [&] { ops().linear({half, weight, {}, out}, context()); }),
            "linear: x is [2, 4] float16, wanted [M, K] float32");
  EXPECT_EQ(error_of(ErrorCode::kInvalidArgument, [&] { ops().linear({x, {}, {}, out}, context()); }),
            "linear: weight is absent, wanted [N, K=4] float32, float16 or bfloat16");
}

}  // namespace
}  // namespace inflight::test
