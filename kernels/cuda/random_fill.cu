#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/random_fill.h"

namespace inflight::cuda {
namespace {

constexpr int kThreads = 256;

// SplitMix64 (Steele et al. 2014, "Fast Splittable Pseudorandom Number Generators").
__device__ uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// The sum of four uniform numbers, brought to variance 1: close enough to normal for weights.
__device__ float about_normal(uint64_t bits) {
  float sum = 0.0f;
  for (int i = 0; i < 4; ++i) sum += static_cast<float>(bits >> (16 * i) & 0xffff) * (1.0f / 65536.0f);
  return (sum - 2.0f) * 1.7320508f;
}

__global__ void __launch_bounds__(kThreads)
    fill_kernel(__nv_bfloat16* out, int64_t count, uint64_t seed, float mean, float spread) {
  wait_for_previous();
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride)
    out[i] = __float2bfloat16(mean + spread * about_normal(mix(seed ^ mix(i))));
}

}  // namespace

void fill_random(void* out, int64_t count, uint64_t seed, float mean, float spread, CudaContext& context) {
  const auto blocks =
      static_cast<unsigned>(std::min<int64_t>((count + kThreads - 1) / kThreads, 8 * context.num_sms()));
  launch(fill_kernel, dim3(blocks), dim3(kThreads), 0, context, static_cast<__nv_bfloat16*>(out), count, seed, mean,
         spread);
}

}  // namespace inflight::cuda
