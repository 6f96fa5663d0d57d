#include <algorithm>
#include <atomic>

#include "kernels/bench/cuda_data.h"
#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/launch.cuh"

namespace inflight::bench {
namespace {

constexpr int kThreads = 256;
constexpr int kLoads = 8;  // 16 bytes each, of a thread
constexpr int64_t kBlockBytes = int64_t{kThreads} * kLoads * 16;

// A counter's hash (Steele et al. 2014, "Fast Splittable Pseudorandom Number Generators").
__device__ uint64_t hash(uint64_t counter) {
  counter += 0x9e3779b97f4a7c15u;
  counter = (counter ^ (counter >> 30)) * 0xbf58476d1ce4e5b9u;
  counter = (counter ^ (counter >> 27)) * 0x94d049bb133111ebu;
  return counter ^ (counter >> 31);
}

// Two normal numbers an item (Box & Muller 1958).
__global__ void fill_normal(uint16_t* out, int64_t count, uint64_t seed, float scale) {
  const int64_t i = 2 * (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x);
  const uint64_t bits = hash(seed + i);
  const float radius = scale * sqrtf(-2.0f * logf((static_cast<uint32_t>(bits >> 32) + 1.0f) * 0x1p-32f));
  float sine, cosine;
  sincospif(static_cast<uint32_t>(bits) * 0x1p-31f, &sine, &cosine);
  const uint32_t pair = cuda::to_bf16_pair(radius * cosine, radius * sine);
  if (i < count) out[i] = static_cast<uint16_t>(pair);
  if (i + 1 < count) out[i + 1] = static_cast<uint16_t>(pair >> 16);
}

__global__ void __launch_bounds__(kThreads) sum_words(const uint4* in, int64_t count, uint32_t* sums) {
  cuda::let_next_start();
  cuda::wait_for_previous();
  const int64_t start = static_cast<int64_t>(blockIdx.x) * kThreads * kLoads + threadIdx.x;
  uint4 words[kLoads];
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    words[i] = make_uint4(0, 0, 0, 0);
    if (start + i * kThreads < count) words[i] = in[start + i * kThreads];
  }
  uint32_t sum = 0;
#pragma unroll
  for (int i = 0; i < kLoads; ++i) sum += words[i].x + words[i].y + words[i].z + words[i].w;
  sum = __reduce_add_sync(0xffffffffu, sum);
  if (threadIdx.x % 32 == 0) sums[(blockIdx.x * kThreads + threadIdx.x) / 32] = sum;
}

template <typename T>
Buffer upload(const std::vector<T>& values, DType dtype, std::initializer_list<int64_t> dims) {
  Buffer out(dtype, dims);
  check(out.view.elements() == static_cast<int64_t>(values.size()), ErrorCode::kInternal, values.size(), " values for ",
        describe(out.view));
  cuda::check_cuda(cudaMemcpy(out.view.data, values.data(), out.view.bytes(), cudaMemcpyHostToDevice), "an upload");
  cuda::check_cuda(cudaDeviceSynchronize(), "an upload");  // cudaMemcpy may return before the copy has arrived
  return out;
}

}  // namespace

Buffer random_buffer(std::initializer_list<int64_t> dims, float scale) {
  static std::atomic<uint64_t> seed{1};
  Buffer out(DType::kBfloat16, dims);
  const int64_t count = out.view.elements(), blocks = (count + 2 * kThreads - 1) / (2 * kThreads);
  if (count == 0) return out;
  fill_normal<<<static_cast<unsigned>(blocks), kThreads>>>(out.view.as<uint16_t>(), count, seed++ << 40, scale);
  cuda::check_cuda(cudaDeviceSynchronize(), "random numbers");
  return out;
}

Buffer int_buffer(const std::vector<int32_t>& values, std::initializer_list<int64_t> dims) {
  if (dims.size() == 0) return upload(values, DType::kInt32, {static_cast<int64_t>(values.size())});
  return upload(values, DType::kInt32, dims);
}

Buffer float_buffer(const std::vector<float>& values) {
  return upload(values, DType::kFloat32, {static_cast<int64_t>(values.size())});
}

int rotations_of(double bytes) {
  constexpr double kCacheBytes = 50e6, kSmall = 0.1 * kCacheBytes;
  return bytes < kSmall ? 4 : std::max(2, static_cast<int>(4 * kCacheBytes / bytes) + 1);
}

int64_t bytes_of_sums(const Buffer& source) {
  const auto bytes = static_cast<int64_t>(source.view.bytes());
  return (bytes + kBlockBytes - 1) / kBlockBytes * (kThreads / 32) * static_cast<int64_t>(sizeof(uint32_t));
}

void read_all(const Buffer& source, const Buffer& sums, cuda::CudaContext& context) {
  const auto bytes = static_cast<int64_t>(source.view.bytes());
  check(bytes % 16 == 0 && static_cast<int64_t>(sums.view.bytes()) >= bytes_of_sums(source),
        ErrorCode::kInvalidArgument, "read_all: ", describe(source.view), " and sums ", describe(sums.view));
  cuda::launch(sum_words, static_cast<unsigned>((bytes + kBlockBytes - 1) / kBlockBytes), kThreads, 0, context,
               source.view.as<const uint4>(), bytes / 16, sums.view.as<uint32_t>());
}

}  // namespace inflight::bench
