#include "kernels/cuda/ops.h"
#include "tests/cuda/gpu_harness.h"

namespace inflight::test {
namespace {

constexpr float kEpsilon = 1e-5f;
constexpr double kRounding = 3.95e-3;  // of one number to bfloat16 at its worst: 2^-8

// RMS norm rounds twice; over many numbers the errors average out.
double rms_bound(int size) { return size < 1024 ? 2 * kRounding : kRounding; }

// Every variant's size and the sizes beside it; odd ones and very large ones take the slow way.
constexpr int kSizes[] = {1, 7, 8, 64, 100, 768, 1024, 1032, 2048, 2051, 4096, 5120, 8192, 8200, 16384, 16392};

double rounded(double value) { return decode_bfloat16(encode_bfloat16(value)); }

Values sum(const Tensor& a, const Tensor& b) {
  Values out = a.values();
  for (size_t i = 0; i < out.size(); ++i) out[i] = rounded(out[i] + b[i]);
  return out;
}

// Layer norm, or RMS norm without `centered`, of rows already rounded.
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

Tensor shifted(const Tensor& source, double shift) {
  Tensor out = source;
  for (int64_t i = 0; i < out.size(); ++i) out.set(i, out[i] + shift);
  return out;
}

class NormGpu : public GpuTest {};

TEST_F(NormGpu, RmsMatchesReference) {
  Random random;
  for (const int size : kSizes) {
    const int m = random.integer(1, 9);
    const Tensor x = Tensor::random(DType::kBfloat16, {m, size}, random);
    const Tensor weight = Tensor::random(DType::kBfloat16, {size}, random);
    const GpuTensor x_gpu(x), weight_gpu(weight), out(DType::kBfloat16, {m, size});
    cuda::rms_norm({x_gpu, {}, weight_gpu, out, kEpsilon}, gpu());
    expect_close(out.host(), reference(x.values(), size, weight, nullptr, false), rms_bound(size));
    cuda::rms_norm({x_gpu, {}, weight_gpu, x_gpu, kEpsilon}, gpu());
    EXPECT_EQ(x_gpu.host().bits(), out.host().bits()) << "in place";
  }
}

TEST_F(NormGpu, RmsAddsTheResidual) {
  Random random;
  for (const int size : kSizes) {
    const Tensor x = Tensor::random(DType::kBfloat16, {5, size}, random);
    const Tensor residual = Tensor::random(DType::kBfloat16, {5, size}, random, 3);
    const Tensor weight = Tensor::random(DType::kBfloat16, {size}, random);
    const GpuTensor x_gpu(x), residual_gpu(residual), weight_gpu(weight), out(DType::kBfloat16, {5, size});
    cuda::rms_norm({x_gpu, residual_gpu, weight_gpu, out, kEpsilon}, gpu());
    const Values added = sum(x, residual);
    EXPECT_EQ(residual_gpu.host().values(), added) << size;
    expect_close(out.host(), reference(added, size, weight, nullptr, false), rms_bound(size));
  }
}

// As transformers rounds: the normalised row to bfloat16, then its product with the weight.
TEST_F(NormGpu, RmsRoundsBeforeTheWeight) {
  Random random;
  const int size = 4096;
  const Tensor x = Tensor::random(DType::kBfloat16, {1, size}, random);
  const Tensor weight = Tensor::random(DType::kBfloat16, {size}, random);
  Tensor ones(DType::kBfloat16, {size});
  for (int i = 0; i < size; ++i) ones.set(i, 1);
  const GpuTensor x_gpu(x), weight_gpu(weight), ones_gpu(ones);
  const GpuTensor normal(DType::kBfloat16, {1, size}), out(DType::kBfloat16, {1, size});
  cuda::rms_norm({x_gpu, {}, ones_gpu, normal, kEpsilon}, gpu());
  cuda::rms_norm({x_gpu, {}, weight_gpu, out, kEpsilon}, gpu());
  const Tensor got = out.host(), row = normal.host();
  for (int i = 0; i < size; ++i) ASSERT_EQ(got[i], rounded(row[i] * weight[i])) << i;
}

TEST_F(NormGpu, LayerMatchesReference) {
  Random random;
  for (const int size : kSizes) {
    if (size == 1) continue;
    const int m = random.integer(1, 9);
    const Tensor x = shifted(Tensor::random(DType::kBfloat16, {m, size}, random), 3);
    const Tensor residual = Tensor::random(DType::kBfloat16, {m, size}, random);
    const Tensor weight = Tensor::random(DType::kBfloat16, {size}, random);
    const Tensor bias = Tensor::random(DType::kBfloat16, {size}, random);
    const GpuTensor x_gpu(x), residual_gpu(residual), weight_gpu(weight), bias_gpu(bias);
    const GpuTensor out(DType::kBfloat16, {m, size});
    cuda::layer_norm({x_gpu, {}, weight_gpu, {}, out, kEpsilon}, gpu());
    expect_close(out.host(), reference(x.values(), size, weight, nullptr, true), kRounding, "no bias");
    cuda::layer_norm({x_gpu, residual_gpu, weight_gpu, bias_gpu, out, kEpsilon}, gpu());
    const Values added = sum(x, residual);
    EXPECT_EQ(residual_gpu.host().values(), added) << size;
    expect_close(out.host(), reference(added, size, weight, &bias, true), kRounding, "bias and residual");
  }
}

TEST_F(NormGpu, RowsDoNotDependOnTheBatch) {
  Random random;
  const int m = 401;
  for (const int size : {4096, 517}) {
    const GpuTensor x(Tensor::random(DType::kBfloat16, {m, size}, random));
    const GpuTensor weight(Tensor::random(DType::kBfloat16, {size}, random));
    const GpuTensor whole(DType::kBfloat16, {m, size}), row(DType::kBfloat16, {1, size});
    for (auto* norm :
         {+[](TensorView x, TensorView weight, TensorView out) { cuda::rms_norm({x, {}, weight, out}, gpu()); },
          +[](TensorView x, TensorView weight, TensorView out) {
            cuda::layer_norm({x, {}, weight, weight, out}, gpu());
          }}) {
      norm(x, weight, whole);
      const Tensor all = whole.host();
      for (const int i : {0, 1, 200, m - 1}) {
        norm(TensorView(x.view().as<uint16_t>() + i * size, DType::kBfloat16, {1, size}), weight, row);
        ASSERT_EQ(row.host().bits(), all.bits(i, i + 1)) << size << " row " << i;
      }
    }
  }
}

TEST_F(NormGpu, NamesWhatDoesNotFit) {
  const Tensor x(DType::kBfloat16, {2, 4}), weight(DType::kBfloat16, {5}), wide(DType::kFloat32, {4});
  EXPECT_EQ(error_of(ErrorCode::kInvalidArgument, [&] { cuda::rms_norm({x, {}, weight, x}, gpu()); }),
            "rms_norm: weight is [5] bfloat16, wanted [H=4] bfloat16");
  EXPECT_EQ(error_of(ErrorCode::kUnsupported, [&] { cuda::layer_norm({x, {}, wide, {}, x}, gpu()); }),
            "layer_norm: weight is [4] float32, wanted [H=4] bfloat16");
}

}  // namespace
}  // namespace inflight::test
