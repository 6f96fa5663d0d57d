#pragma once

#include <cuda_runtime.h>

#include <cstdint>

/// bfloat16 as the kernels handle it: eight elements in a 16-byte register group, or one in 16 bits; arithmetic in
/// float32. And sums over warps and blocks.
namespace inflight::cuda {

inline constexpr int kVectorSize = 8;  // bfloat16 elements of a 16-byte access

__device__ __forceinline__ float bf16_low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float bf16_high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

/// Two numbers rounded to nearest even, `low` in the lower half.
__device__ __forceinline__ uint32_t to_bf16_pair(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

__device__ __forceinline__ float round_to_bf16(float value) { return bf16_low(to_bf16_pair(value, 0.0f)); }

/// A group of kWidth elements in memory: 8 in one access, or 1 where sizes or addresses do not allow that.
template <int kWidth>
struct Bf16Group;

template <>
struct Bf16Group<kVectorSize> {
  using Bits = uint4;
  static __device__ __forceinline__ void unpack(const Bits& bits, float* out) {
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = bf16_low(words[i]);
      out[2 * i + 1] = bf16_high(words[i]);
    }
  }
  static __device__ __forceinline__ Bits pack(const float* in) {
    return make_uint4(to_bf16_pair(in[0], in[1]), to_bf16_pair(in[2], in[3]), to_bf16_pair(in[4], in[5]),
                      to_bf16_pair(in[6], in[7]));
  }
};

template <>
struct Bf16Group<1> {
  using Bits = uint16_t;
  static __device__ __forceinline__ void unpack(const Bits& bits, float* out) { *out = bf16_low(bits); }
  static __device__ __forceinline__ Bits pack(const float* in) {
    return static_cast<uint16_t>(to_bf16_pair(*in, 0.0f));
  }
};

__device__ __forceinline__ void unpack8(const uint4& bits, float* out) { Bf16Group<kVectorSize>::unpack(bits, out); }
__device__ __forceinline__ uint4 pack8(const float* in) { return Bf16Group<kVectorSize>::pack(in); }

/// The sum over a warp, in every lane.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
  return value;
}

/// The sum over a block of kThreads (a multiple of 128), in every thread and always in the same order, after one
/// barrier. `partial` is the block's own for this sum: [kThreads / 32] in shared memory, 16-byte aligned.
template <int kThreads>
__device__ __forceinline__ float block_sum(float value, float* partial) {
  static_assert(kThreads % 128 == 0);
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < kThreads / 128; ++i) {
    const float4 four = reinterpret_cast<const float4*>(partial)[i];
    total += (four.x + four.y) + (four.z + four.w);
  }
  return total;
}

}  // namespace inflight::cuda
