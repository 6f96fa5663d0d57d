#include <algorithm>

#include "kernels/cuda/arguments.h"
#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/plain_linear.h"

namespace inflight::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int64_t kMaxBlocks = 1 << 20;

__global__ void __launch_bounds__(kThreads)
    plain_kernel(const uint16_t* x, const uint16_t* weight, const uint16_t* bias, void* out, int64_t outputs, int64_t n,
                 int64_t k, bool float_out, bool add) {
  let_next_start();
  wait_for_previous();
  const int lane = threadIdx.x % 32;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; i < outputs;
       i += static_cast<int64_t>(gridDim.x) * kWarps) {
    const uint16_t *x_row = x + i / n * k, *weight_row = weight + i % n * k;
    float sum = 0.0f;
    for (int64_t j = lane; j < k; j += 32) sum = fmaf(bf16_low(x_row[j]), bf16_low(weight_row[j]), sum);
    sum = warp_sum(sum);
    if (lane != 0) continue;
    if (bias) sum += bf16_low(bias[i % n]);
    if (float_out) {
      static_cast<float*>(out)[i] = sum + (add ? static_cast<float*>(out)[i] : 0.0f);
    } else {
      uint16_t& to = static_cast<uint16_t*>(out)[i];
      to = static_cast<uint16_t>(to_bf16_pair(sum + (add ? bf16_low(to) : 0.0f), 0.0f));
    }
  }
}

__global__ void __launch_bounds__(kThreads) add_bias_kernel(const uint16_t* bias, float* out, int64_t size, int64_t n) {
  let_next_start();
  wait_for_previous();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < size; i += step)
    out[i] += bf16_low(bias[i % n]);
}

__device__ __forceinline__ uint32_t hash(uint32_t value) {
  value = (value ^ value >> 16) * 0x7feb352du;
  value = (value ^ value >> 15) * 0x846ca68bu;
  return value ^ value >> 16;
}

__global__ void __launch_bounds__(kThreads) fill_kernel(uint16_t* data, int64_t elements, uint32_t seed) {
  wait_for_previous();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < elements; i += step) {
    const float unit =
        static_cast<float>(hash(static_cast<uint32_t>(i) ^ hash(seed + static_cast<uint32_t>(i >> 32)))) * 0x1p-31f;
    data[i] = static_cast<uint16_t>(to_bf16_pair(unit - 1.0f, 0.0f));
  }
}

dim3 blocks_for(int64_t items) { return dim3(static_cast<unsigned>(std::min(kMaxBlocks, items))); }

}  // namespace

void plain_linear(const void* x, const void* weight, const void* bias, void* out, const GemmProblem& p,
                  CudaContext& context) {
  launch(plain_kernel, blocks_for(divide_up(p.m * p.n, kWarps)), kThreads, 0, context, static_cast<const uint16_t*>(x),
         static_cast<const uint16_t*>(weight), static_cast<const uint16_t*>(bias), out, p.m * p.n, p.n, p.k,
         p.float_out, p.add);
}

void add_bias(const void* bias, void* out, int64_t m, int64_t n, CudaContext& context) {
  launch(add_bias_kernel, blocks_for(divide_up(m * n, kThreads)), kThreads, 0, context,
         static_cast<const uint16_t*>(bias), static_cast<float*>(out), m * n, n);
}

void fill_random(void* data, int64_t elements, uint32_t seed, CudaContext& context) {
  launch(fill_kernel, blocks_for(divide_up(elements, kThreads)), kThreads, 0, context, static_cast<uint16_t*>(data),
         elements, seed);
}

}  // namespace inflight::cuda
