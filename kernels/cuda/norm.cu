// One block a row, the row in registers: one pass over memory, one barrier a sum. A row's result depends on its size
// alone, never on how many rows there are.

#include "kernels/cuda/arguments.h"
#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"

namespace inflight::cuda {
namespace {

struct Norm {
  const void* x;       // [M, H]
  void* residual;      // [M, H] or null
  const void* weight;  // [H]
  const void* bias;    // [H] or null
  void* out;           // [M, H]
  int64_t size;        // H
  float epsilon;
};

__device__ __forceinline__ float inverse_deviation(float sum_of_squares, const Norm& norm) {
  return rsqrtf(sum_of_squares / static_cast<float>(norm.size) + norm.epsilon);
}

// RMS norm rounds before the weight too, as transformers' Llama does; layer norm rounds once, as torch's does.
template <bool kCentered>
__device__ __forceinline__ float scaled(float value, float mean, float scale, float weight, float bias) {
  if constexpr (kCentered) return (value - mean) * scale * weight + bias;
  return round_to_bf16(value * scale) * weight;
}

template <int kThreads, int kVectors, bool kCentered>
__global__ void __launch_bounds__(kThreads) norm_rows(const Norm norm) {
  __shared__ __align__(16) float partial[2][kThreads / 32];
  const int vectors = static_cast<int>(norm.size) / kVectorSize;
  uint4 weight[kVectors], bias[kVectors];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = threadIdx.x + v * kThreads;
    weight[v] = bias[v] = make_uint4(0, 0, 0, 0);
    if (i >= vectors) continue;
    weight[v] = __ldg(static_cast<const uint4*>(norm.weight) + i);
    if (kCentered && norm.bias) bias[v] = __ldg(static_cast<const uint4*>(norm.bias) + i);
  }
  wait_and_let_next_start();

  const int64_t start = static_cast<int64_t>(blockIdx.x) * vectors;
  const uint4* x = static_cast<const uint4*>(norm.x) + start;
  uint4* residual = norm.residual ? static_cast<uint4*>(norm.residual) + start : nullptr;
  uint4 row_bits[kVectors], added_bits[kVectors];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = threadIdx.x + v * kThreads;
    row_bits[v] = added_bits[v] = make_uint4(0, 0, 0, 0);
    if (i >= vectors) continue;
    row_bits[v] = x[i];
    if (residual) added_bits[v] = residual[i];
  }

  float row[kVectors][kVectorSize];
  float sum = 0.0f;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = threadIdx.x + v * kThreads;
    unpack8(row_bits[v], row[v]);
    if (residual) {
      float added[kVectorSize];
      unpack8(added_bits[v], added);
#pragma unroll
      for (int j = 0; j < kVectorSize; ++j) row[v][j] += added[j];
      const uint4 rounded = pack8(row[v]);
      if (i < vectors) residual[i] = rounded;
      unpack8(rounded, row[v]);
    }
#pragma unroll
    for (int j = 0; j < kVectorSize; ++j) sum += kCentered ? row[v][j] : row[v][j] * row[v][j];
  }
  sum = block_sum<kThreads>(sum, partial[0]);

  float mean = 0.0f;
  if constexpr (kCentered) {
    mean = sum / static_cast<float>(norm.size);
    sum = 0.0f;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if (threadIdx.x + v * kThreads >= vectors) continue;
#pragma unroll
      for (int j = 0; j < kVectorSize; ++j) sum += (row[v][j] - mean) * (row[v][j] - mean);
    }
    sum = block_sum<kThreads>(sum, partial[1]);
  }
  const float scale = inverse_deviation(sum, norm);

  uint4* out = static_cast<uint4*>(norm.out) + start;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = threadIdx.x + v * kThreads;
    float factor[kVectorSize], offset[kVectorSize];
    unpack8(weight[v], factor);
    unpack8(bias[v], offset);
#pragma unroll
    for (int j = 0; j < kVectorSize; ++j) row[v][j] = scaled<kCentered>(row[v][j], mean, scale, factor[j], offset[j]);
    if (i < vectors) out[i] = pack8(row[v]);
  }
}

// Any size and any address, an element at a time from memory.
template <bool kCentered>
__global__ void __launch_bounds__(256) norm_rows_slowly(const Norm norm) {
  __shared__ __align__(16) float partial[2][8];
  using Element = Bf16Group<1>;
  wait_and_let_next_start();
  const int64_t start = static_cast<int64_t>(blockIdx.x) * norm.size;
  const uint16_t* row = static_cast<const uint16_t*>(norm.x) + start;
  if (norm.residual) {
    uint16_t* residual = static_cast<uint16_t*>(norm.residual) + start;
    for (int64_t i = threadIdx.x; i < norm.size; i += 256) {
      const float total = bf16_low(row[i]) + bf16_low(residual[i]);
      residual[i] = Element::pack(&total);
    }
    row = residual;  // each thread reads back only what it wrote
  }
  float sum = 0.0f, mean = 0.0f;
  if constexpr (kCentered) {
    for (int64_t i = threadIdx.x; i < norm.size; i += 256) sum += bf16_low(row[i]);
    mean = block_sum<256>(sum, partial[0]) / static_cast<float>(norm.size);
    sum = 0.0f;
  }
  for (int64_t i = threadIdx.x; i < norm.size; i += 256) {
    const float difference = bf16_low(row[i]) - mean;
    sum += difference * difference;
  }
  const float scale = inverse_deviation(block_sum<256>(sum, partial[1]), norm);
  const auto* weight = static_cast<const uint16_t*>(norm.weight);
  const auto* bias = static_cast<const uint16_t*>(norm.bias);
  uint16_t* out = static_cast<uint16_t*>(norm.out) + start;
  for (int64_t i = threadIdx.x; i < norm.size; i += 256) {
    const float offset = bias ? bf16_low(bias[i]) : 0.0f;
    const float value = scaled<kCentered>(bf16_low(row[i]), mean, scale, bf16_low(weight[i]), offset);
    out[i] = Element::pack(&value);
  }
}

struct Variant {
  int max_size;  // of a row
  int threads;
  void (*kernel)(Norm);
};

template <bool kCentered>
constexpr Variant kVariants[] = {
    {1024, 128, norm_rows<128, 1, kCentered>},    {2048, 256, norm_rows<256, 1, kCentered>},
    {4096, 256, norm_rows<256, 2, kCentered>},    {8192, 512, norm_rows<512, 2, kCentered>},
    {16384, 1024, norm_rows<1024, 2, kCentered>},
};

template <bool kCentered>
Variant choose(const Norm& norm) {
  if (allows_vectors(norm.size * size_of(DType::kBfloat16), {norm.x, norm.residual, norm.weight, norm.bias, norm.out}))
    for (const Variant& variant : kVariants<kCentered>)
      if (norm.size <= variant.max_size) return variant;
  return {0, 256, norm_rows_slowly<kCentered>};
}

template <bool kCentered>
void launch_norm(const Norm& norm, int64_t rows, DeviceContext& device) {
  const Variant variant = choose<kCentered>(norm);
  launch(variant.kernel, static_cast<unsigned>(norm.size > 0 ? rows : 0), variant.threads, 0, cuda_context(device),
         norm);
}

}  // namespace

void rms_norm(const RmsNormArgs& args, DeviceContext& device) {
  Dim m("M"), h("H");
  Signature("rms_norm")
      .view("x", args.x, {m, h}, kBf16)
      .optional("residual", args.residual, {m, h}, kBf16)
      .view("weight", args.weight, {h}, kBf16)
      .view("out", args.out, {m, h}, kBf16);
  const Norm norm{args.x.data, args.residual.data, args.weight.data, nullptr, args.out.data, h, args.epsilon};
  launch_norm<false>(norm, m, device);
}

void layer_norm(const LayerNormArgs& args, DeviceContext& device) {
  Dim m("M"), h("H");
  Signature("layer_norm")
      .view("x", args.x, {m, h}, kBf16)
      .optional("residual", args.residual, {m, h}, kBf16)
      .view("weight", args.weight, {h}, kBf16)
      .optional("bias", args.bias, {h}, kBf16)
      .view("out", args.out, {m, h}, kBf16);
  const Norm norm{args.x.data, args.residual.data, args.weight.data, args.bias.data, args.out.data, h, args.epsilon};
  launch_norm<true>(norm, m, device);
}

}  // namespace inflight::cuda
