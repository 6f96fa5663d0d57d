#include "kernels/cuda/ops.h"
#include "tests/cuda/gpu_harness.h"

/// Products that add to a residual.
namespace inflight::test {
namespace {

constexpr double kBf16Bound = 4e-3;

Values product(const Values& x, const Tensor& weight, int64_t m) {
  const int64_t n = weight.view().shape[0], k = weight.view().shape[1];
  const Values b = weight.values();
  Values out(m * n);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) out[i * n + j] = std::inner_product(&x[i * k], &x[i * k] + k, &b[j * k], 0.0);
  return out;
}

Tensor bf16(std::initializer_list<int64_t> dims, Random& random, double scale = 1) {
  return Tensor::random(DType::kBfloat16, dims, random, scale);
}

class LinearAddGpu : public GpuTest {
 protected:
  Random random_;
};

TEST_F(LinearAddGpu, AddsToTheResidual) {
  for (const auto& [n, k] : {std::pair{7, 13}, {40, 72}, {130, 256}, {1000, 1024}, {33, 515}})
    for (const int m : {1, 2, 8, 9, 17, 33, 64, 200}) {
      const Tensor x = bf16({m, k}, random_), weight = bf16({n, k}, random_, 0.1), bias = bf16({n}, random_);
      const Tensor residual = bf16({m, n}, random_);
      const GpuTensor gpu_x(x), gpu_weight(weight), gpu_bias(bias);
      for (const bool with_bias : {false, true}) {
        const GpuTensor sum(residual);
        cuda::linear_add({gpu_x, gpu_weight, with_bias ? gpu_bias.view() : TensorView{}, sum}, gpu());
        Values want = product(x.values(), weight, m);
        for (int64_t i = 0; i < m * n; ++i) want[i] += residual[i] + (with_bias ? bias[i % n] : 0.0);
        expect_close(sum.host(), want, 2 * kBf16Bound, concat(m, " x ", n, " x ", k, with_bias ? " bias" : ""));
      }
    }
}

TEST_F(LinearAddGpu, ASumOfARowIsTheSameAloneAndInABatch) {
  cuda::CudaOptions options;
  options.batch_invariant = true;
  cuda::CudaContext context(options);
  const int rows = 300, n = 768, k = 1024;
  const GpuTensor x(bf16({rows, k}, random_)), weight(bf16({n, k}, random_));
  const Tensor residual = bf16({rows, n}, random_);
  const GpuTensor whole(residual), alone(residual);
  cuda::linear_add({x, weight, {}, whole}, context);
  for (const auto& [begin, m] : {std::pair{0, 1}, {1, 63}, {64, 200}, {264, 36}}) {
    const TensorView part(x.view().as<uint16_t>() + begin * k, DType::kBfloat16, {m, k});
    const TensorView sum(alone.view().as<uint16_t>() + begin * n, DType::kBfloat16, {m, n});
    cuda::linear_add({part, weight, {}, sum}, context);
  }
  context.synchronize();
  EXPECT_TRUE(alone.host().bits() == whole.host().bits());
}

}  // namespace
}  // namespace inflight::test
