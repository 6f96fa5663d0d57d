#include "kernels/cuda/ops.h"
#include "tests/cuda/gpu_harness.h"

namespace inflight::test {
namespace {

constexpr double kBound = 3.95e-3;  // bfloat16's rounding, at its worst for the smallest sizes: 2^-8
constexpr int kSizes[] = {1, 5, 8, 40, 257, 1024, 4099, 14336};
constexpr Activation kActivations[] = {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh, Activation::kRelu};

double reference(Activation activation, double x) {
  switch (activation) {
    case Activation::kSilu: return x / (1 + std::exp(-x));
    case Activation::kGelu: return x * std::erfc(-x / std::sqrt(2.0)) / 2;
    case Activation::kGeluTanh: return x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))) / 2;
    case Activation::kRelu: return std::max(x, 0.0);
  }
  return std::nan("");
}

class ElementwiseGpu : public GpuTest {};

TEST_F(ElementwiseGpu, ActivationMatchesReference) {
  Random random;
  for (const Activation activation : kActivations)
    for (const int n : kSizes) {
      const Tensor x = Tensor::random(DType::kBfloat16, {3, n}, random, 3);
      const GpuTensor x_gpu(x), out(DType::kBfloat16, {3, n});
      cuda::activation({x_gpu, out, activation}, gpu());
      Values want = x.values();
      for (double& value : want) value = reference(activation, value);
      expect_close(out.host(), want, kBound, concat("activation ", static_cast<int>(activation)));
      cuda::activation({x_gpu, x_gpu, activation}, gpu());
      EXPECT_EQ(x_gpu.host().bits(), out.host().bits()) << "in place";
    }
}

TEST_F(ElementwiseGpu, GatedActivationMatchesReference) {
  Random random;
  for (const Activation activation : kActivations)
    for (const int n : kSizes) {
      const int m = random.integer(1, 33);
      const Tensor x = Tensor::random(DType::kBfloat16, {m, 2 * n}, random, 3);
      const GpuTensor x_gpu(x), out(DType::kBfloat16, {m, n});
      cuda::gated_activation({x_gpu, out, activation}, gpu());
      Values want(m * n);
      for (int i = 0; i < m * n; ++i) {
        const int gate = i / n * 2 * n + i % n;
        want[i] = reference(activation, x[gate]) * x[gate + n];
      }
      expect_close(out.host(), want, kBound, concat("activation ", static_cast<int>(activation), " of ", n));
    }
}

// Every bfloat16 number at once, the largest and infinity among them.
TEST_F(ElementwiseGpu, SiluOfEveryNumber) {
  Tensor x(DType::kBfloat16, {2, 32768});
  for (int i = 0; i < 65536; ++i) x.view().as<uint16_t>()[i] = static_cast<uint16_t>(i);
  const GpuTensor x_gpu(x), out(DType::kBfloat16, {2, 32768});
  cuda::activation({x_gpu, out, Activation::kSilu}, gpu());
  const Tensor got = out.host();
  for (int i = 0; i < 65536; ++i) {
    if (std::isnan(x[i])) {
      EXPECT_TRUE(std::isnan(got[i])) << i;
    } else if (!std::isinf(x[i])) {
      const double want = reference(Activation::kSilu, x[i]);
      ASSERT_NEAR(got[i], want, kBound * std::fabs(want) + 1.1e-36) << x[i];
    }
  }
  EXPECT_EQ(got[0x7f80], std::numeric_limits<double>::infinity());
}

// Also where the result is tiny.
TEST_F(ElementwiseGpu, ActivationsAreAccurateInTheirTails) {
  Tensor x(DType::kBfloat16, {1, 4001});
  for (int i = 0; i < x.size(); ++i) x.set(i, (i - 2000) * 0.005);
  const GpuTensor x_gpu(x), out(DType::kBfloat16, {1, 4001});
  for (const Activation activation : {Activation::kSilu, Activation::kGelu}) {
    cuda::activation({x_gpu, out, activation}, gpu());
    const Tensor got = out.host();
    for (int i = 0; i < x.size(); ++i) {
      const double want = reference(activation, x[i]);
      ASSERT_NEAR(got[i], want, kBound * std::fabs(want))
          << "activation " << static_cast<int>(activation) << " at " << x[i];
    }
  }
}

TEST_F(ElementwiseGpu, RowsDoNotDependOnTheBatch) {
  Random random;
  const int m = 300, n = 1000;
  const GpuTensor x(Tensor::random(DType::kBfloat16, {m, 2 * n}, random, 3));
  const GpuTensor whole(DType::kBfloat16, {m, n}), row(DType::kBfloat16, {1, n});
  cuda::gated_activation({x, whole}, gpu());
  const Tensor all = whole.host();
  for (const int i : {0, 1, 150, m - 1}) {
    cuda::gated_activation({TensorView(x.view().as<uint16_t>() + i * 2 * n, DType::kBfloat16, {1, 2 * n}), row}, gpu());
    ASSERT_EQ(row.host().bits(), all.bits(i, i + 1));
  }
}

TEST_F(ElementwiseGpu, AddAddsInPlaceToo) {
  Random random;
  for (const int n : kSizes) {
    const Tensor a = Tensor::random(DType::kBfloat16, {19, n}, random);
    const Tensor b = Tensor::random(DType::kBfloat16, {19, n}, random);
    const GpuTensor a_gpu(a), b_gpu(b), out(DType::kBfloat16, {19, n});
    cuda::add({a_gpu, b_gpu, out}, gpu());
    const Tensor got = out.host();
    for (int i = 0; i < 19 * n; ++i) ASSERT_EQ(got[i], decode_bfloat16(encode_bfloat16(a[i] + b[i])));
    cuda::add({a_gpu, b_gpu, a_gpu}, gpu());
    EXPECT_EQ(a_gpu.host().bits(), got.bits());
  }
}

TEST_F(ElementwiseGpu, NoRowsAreNoWork) {
  const GpuTensor x(DType::kBfloat16, {0, 8}), out(DType::kBfloat16, {0, 4});
  cuda::gated_activation({x, out}, gpu());
  cuda::activation({x, x}, gpu());
  gpu().synchronize();
}

TEST_F(ElementwiseGpu, NamesWhatDoesNotFit) {
  const Tensor x(DType::kBfloat16, {2, 8}), out(DType::kBfloat16, {2, 3}), wide(DType::kFloat32, {2, 8});
  EXPECT_EQ(error_of(ErrorCode::kInvalidArgument, [&] { cuda::gated_activation({x, out}, gpu()); }),
            "gated_activation: x is [2, 8] bfloat16, wanted [M=2, 2 N=6] bfloat16");
  EXPECT_EQ(error_of(ErrorCode::kInvalidArgument, [&] { cuda::add({x, out, x}, gpu()); }),
            "add: b is [2, 3] bfloat16, wanted [M=2, N=8] bfloat16");
  EXPECT_EQ(error_of(ErrorCode::kUnsupported, [&] { cuda::activation({wide, x}, gpu()); }),
            "activation: x is [2, 8] float32, wanted [M, N] bfloat16");
  EXPECT_EQ(error_of(ErrorCode::kUnsupported, [&] { cuda::activation({x, x, static_cast<Activation>(9)}, gpu()); }),
            "activation: no activation number 9");
}

}  // namespace
}  // namespace inflight::test
