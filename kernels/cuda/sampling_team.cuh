#pragma once

#include <cstring>

#include "kernels/cuda/sampling_memory.cuh"

/// The blocks that share one row of logits: a thread block cluster (CUDA Programming Guide, "Thread Block Clusters"),
/// whose blocks write into each other's shared memory.
namespace inflight::cuda::sampling {

__device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
__device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / 32; }
__device__ __forceinline__ int team_rank() { return static_cast<int>(__clusterRelativeBlockRank()); }
__device__ __forceinline__ int team_size() { return static_cast<int>(__clusterSizeInBlocks()); }
__device__ __forceinline__ bool leads() { return team_rank() == 0; }

/// No block may be written to before it runs: all arrive first thing, and wait before the first reduce().
__device__ __forceinline__ void team_arrive() { __cluster_barrier_arrive(); }
__device__ __forceinline__ void team_wait() { __cluster_barrier_wait(); }
__device__ __forceinline__ void synchronize_team() {
  team_arrive();
  team_wait();
}

/// Another block's copy of a shared variable.
template <typename T>
__device__ __forceinline__ T* of_block(T* local, int block) {
  return static_cast<T*>(__cluster_map_shared_rank(local, block));
}

template <typename T>
__device__ __forceinline__ T shuffle_xor(const T& value, int mask) {
  static_assert(sizeof(T) % 4 == 0);
  uint32_t words[sizeof(T) / 4];
  memcpy(words, &value, sizeof(T));
#pragma unroll
  for (uint32_t& word : words) word = __shfl_xor_sync(~0u, word, mask);
  T out;
  memcpy(&out, words, sizeof(T));
  return out;
}

struct Add {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Maximum {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

/// Merges the values of `Width` neighbouring lanes into each of them.
template <int Width, typename T, typename Merge>
__device__ __forceinline__ T warp_reduce(T value, Merge merge) {
#pragma unroll
  for (int mask = Width / 2; mask > 0; mask /= 2) value = merge(value, shuffle_xor(value, mask));
  return value;
}

/// The warp has instructions for the highest of 32 words; lanes beyond `Width` repeat the others' values.
template <int Width>
__device__ __forceinline__ uint64_t warp_reduce(uint64_t value, Maximum) {
  const auto high = static_cast<uint32_t>(value >> 32), low = static_cast<uint32_t>(value);
  const uint32_t highest = __reduce_max_sync(~0u, high);
  return uint64_t{highest} << 32 | __reduce_max_sync(~0u, high == highest ? low : 0);
}

/// Sum over this lane and the lanes below it.
template <typename T>
__device__ __forceinline__ T warp_inclusive_sum(T value) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const T below = __shfl_up_sync(~0u, value, distance);
    if (lane() >= distance) value += below;
  }
  return value;
}

/// What a warp, or a block, brought to the last reduce(): readable until the next.
template <typename T>
__device__ __forceinline__ T& warp_part(int warp) {
  return *reinterpret_cast<T*>(shared().team.warp_parts[warp]);
}
template <typename T>
__device__ __forceinline__ T& block_part(int block) {
  return *reinterpret_cast<T*>(shared().team.block_parts[shared().team.next ^ 1][block]);
}

/// One value from the values of all threads of all blocks, in an order that never changes. All of them call.
template <typename T, typename Merge>
__device__ __noinline__ T reduce(T value, Merge merge) {
  static_assert(sizeof(T) <= TeamMemory::kPartBytes);
  TeamMemory& memory = shared().team;
  const int current = memory.next, size = team_size();
  value = warp_reduce<32>(value, merge);
  if (lane() == 0) warp_part<T>(warp()) = value;
  __syncthreads();
  const auto part = [&](int block) { return reinterpret_cast<T*>(memory.block_parts[current][block]); };
  if (warp() == 0) {
    value = warp_reduce<kWarps>(warp_part<T>(lane() % kWarps), merge);
    if (lane() < size) *of_block(part(team_rank()), lane()) = value;
    if (lane() == 0) memory.next = current ^ 1;
  }
  synchronize_team();
  T out = *part(0);
#pragma unroll 1
  for (int block = 1; block < size; ++block) out = merge(out, *part(block));
  return out;
}

/// Sum over this block's threads.
static __device__ __noinline__ double block_sum(double value) {
  double (&sums)[kWarps] = shared().warp_sums[0];
  value = warp_reduce<32>(value, Add());
  __syncthreads();  // the sums of an earlier call may still be read
  if (lane() == 0) sums[warp()] = value;
  __syncthreads();
  double total = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) total += sums[i];
  return total;
}

}  // namespace inflight::cuda::sampling
