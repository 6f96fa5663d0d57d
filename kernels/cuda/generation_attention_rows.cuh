#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/generation_attention_loader.cuh"
#include "kernels/cuda/rope_angle.cuh"

/// The query heads of generation attention and, where it rotates, the new tokens.
namespace inflight::cuda {

/// cos and sin of the angles of one position, times the rope's factor, for the lanes of the warp.
template <typename Tile>
__device__ __forceinline__ void make_angles(const GenerationParams& p, int position, float2* angles, int lane) {
  __syncwarp();
#pragma unroll 1
  for (int i = lane; i < Tile::D / 2; i += 32) {
    const Angle angle = cosine_and_sine(static_cast<float>(position) * __ldg(p.rope.frequencies + i));
    angles[i] = make_float2(angle.cosine * p.rope.scale, angle.sine * p.rope.scale);
  }
  __syncwarp();
}

/// Eight neighbouring elements of the first half of a vector and their partners of the second.
__device__ __forceinline__ void rotate_words(uint32_t (&low)[4], uint32_t (&high)[4], const float2* angles) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float4 two = *reinterpret_cast<const float4*>(angles + 2 * i);  // cosine, sine, cosine, sine
    const RotatedPair even = rotate(bf16_low(low[i]), bf16_low(high[i]), two.x, two.y);
    const RotatedPair odd = rotate(bf16_high(low[i]), bf16_high(high[i]), two.z, two.w);
    low[i] = to_bf16_pair(even.first, odd.first);
    high[i] = to_bf16_pair(even.second, odd.second);
  }
}

/// The query heads of one (sequence, head) pair as the right operand of D / 16 products; those past the group are zero.
/// Each lane has its words in registers, or in shared memory where these are too few.
template <typename Tile>
struct QueryRows {
  static constexpr int D = Tile::D;

  uint32_t words[Tile::kSharedRows ? 1 : Along<D>::kChunks][Tile::kHeadTiles][4];
  float slopes[Tile::kHeadTiles][2];  // in base 2; of the heads whose scores the lane has
  uint4* shared;                      // [D / 32, 32 lanes]

  /// `stride`: heads from one sequence's queries to the next's.
  __device__ __forceinline__ void load(const GenerationParams& p, int stride, int sequence, int head, int lane) {
    const HeadRows rows(p, head);
    const int64_t row = static_cast<int64_t>(sequence) * stride + rows.first + lane / 4;
    const uint16_t* q = p.q + row * D;
#pragma unroll
    for (int tile = 0; tile < Tile::kHeadTiles; ++tile) {
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        const int mine = tile * kHeadTile + lane % 4 * 2 + odd;
        slopes[tile][odd] = p.alibi_slopes && mine < rows.rows ? p.alibi_slopes[rows.first + mine] * 1.44269504f : 0.0f;
      }
      const bool there = tile * kHeadTile + lane / 4 < rows.rows;
#pragma unroll
      for (int chunk = 0; chunk < Along<D>::kChunks; ++chunk) {
        const uint16_t* from = q + tile * kHeadTile * D + Along<D>::first(chunk, lane % 4);
        if constexpr (Tile::kSharedRows) {
          copy_16_bytes(shared_address(shared + chunk * 32 + lane), there ? from : p.q, there);
          continue;
        }
        uint32_t (&to)[4] = words[Tile::kSharedRows ? 0 : chunk][tile];
        const int count = Along<D>::words(chunk);
        uint4 all{};
        if (there && count == 4) all = __ldcg(reinterpret_cast<const uint4*>(from));
        if (there && count == 2) {
          const uint2 two = __ldcg(reinterpret_cast<const uint2*>(from));
          all.x = two.x, all.y = two.y;
        }
        to[0] = all.x, to[1] = all.y, to[2] = all.z, to[3] = all.w;
      }
    }
    if constexpr (Tile::kSharedRows) close_copies();
  }

  /// Makes the loaded words ready for use.
  template <bool kRope>
  __device__ __forceinline__ void publish(const float2* angles, int lane) {
    if constexpr (Tile::kSharedRows) wait_for_copies<0>();
    if constexpr (kRope) rotate(angles, lane);
  }

  __device__ __forceinline__ void operand(int chunk, int tile, int lane, uint32_t (&right)[4]) const {
    if constexpr (Tile::kSharedRows) {
      get(shared[chunk * 32 + lane], right);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) right[i] = words[chunk][tile][i];
    }
  }

 private:
  static __device__ __forceinline__ void get(const uint4& all, uint32_t (&to)[4]) {
    to[0] = all.x, to[1] = all.y, to[2] = all.z, to[3] = all.w;
  }

  __device__ __forceinline__ void rotate(const float2* angles, int lane) {
#pragma unroll
    for (int tile = 0; tile < Tile::kHeadTiles; ++tile)
#pragma unroll
      for (int chunk = 0; chunk < D / 64; ++chunk) {
        const float2* turn = angles + Along<D>::first(chunk, lane % 4);
        if constexpr (Tile::kSharedRows) {
          uint4 &low = shared[chunk * 32 + lane], &high = shared[(chunk + D / 64) * 32 + lane];
          uint32_t low_words[4], high_words[4];
          get(low, low_words);
          get(high, high_words);
          rotate_words(low_words, high_words, turn);
          low = make_uint4(low_words[0], low_words[1], low_words[2], low_words[3]);
          high = make_uint4(high_words[0], high_words[1], high_words[2], high_words[3]);
        } else {
          rotate_words(words[chunk][tile], words[chunk + D / 64][tile], turn);
        }
      }
  }
};

/// The key and the value of a sequence's new token in one KV head on their way to the cache, and to the slice that
/// holds its position. Not rotated yet, they arrive in registers and wait in shared memory, [2, D] of the warp.
template <typename Tile>
class NewToken {
 public:
  static constexpr int D = Tile::D;

  __device__ __forceinline__ explicit NewToken(unsigned char* memory) : memory_(reinterpret_cast<uint16_t*>(memory)) {}

  __device__ __forceinline__ void load(const GenerationParams& p, int sequence, int head, int lane) {
    const int64_t vector =
        static_cast<int64_t>(sequence) * (p.group + 2) * p.kv_heads + p.group * p.kv_heads + HeadRows(p, head).kv_head;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int i = part * 32 + lane;
      if (i >= D / 4) continue;
      const int64_t source = (i < D / 8 ? vector : vector + p.kv_heads) * D + i % (D / 8) * 8;
      words_[part] = __ldcg(reinterpret_cast<const uint4*>(p.q + source));
    }
  }

  /// Makes what was loaded ready for put_key and put_value.
  __device__ __forceinline__ void publish(int lane) const {
    __syncwarp();  // all lanes have read the one before
#pragma unroll
    for (int part = 0; part < kParts; ++part)
      if (part * 32 + lane < D / 4) reinterpret_cast<uint4*>(memory_)[part * 32 + lane] = words_[part];
    __syncwarp();
  }

  /// Rotates the key over token `row` of the slice and writes it to `cached`, unless that is null.
  __device__ __forceinline__ void put_key(KeySlice<Tile>& keys, int row, const float2* angles, uint16_t* cached,
                                          int lane) const {
    uint32_t key[Along<D>::kChunks][4];
#pragma unroll
    for (int chunk = 0; chunk < D / 32; ++chunk) read(key[chunk], memory_ + Along<D>::first(chunk, lane % 4));
#pragma unroll
    for (int chunk = 0; chunk < D / 64; ++chunk)
      rotate_words(key[chunk], key[chunk + D / 64], angles + Along<D>::first(chunk, lane % 4));
#pragma unroll
    for (int chunk = 0; chunk < D / 32; ++chunk) {
      if (cached && lane < 4) write(cached + Along<D>::first(chunk, lane), key[chunk]);
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (row == lane / 4 + i / 4 * 8) keys.words[chunk][i / 4][i % 4] = key[chunk][i % 4];
    }
  }

  __device__ __forceinline__ void put_value(ValueSlice<Tile>& values, int row, uint16_t* cached, int lane) const {
#pragma unroll
    for (int chunk = 0; chunk < D / 64; ++chunk) {
      uint32_t value[4];
      read(value, memory_ + D + Across<D>::first(chunk, lane / 4));
      if (cached && lane % 4 == 0) write(cached + Across<D>::first(chunk, lane / 4), value);
#pragma unroll
      for (int i = 0; i < 16; ++i)
        if (row == ValueSlice<Tile>::token(i / 4, lane)) values.words[chunk][i / 4][i % 4] = value[i % 4];
    }
  }

 private:
  static __device__ __forceinline__ void read(uint32_t (&to)[4], const uint16_t* from) {
    const uint4 all = *reinterpret_cast<const uint4*>(from);
    to[0] = all.x, to[1] = all.y, to[2] = all.z, to[3] = all.w;
  }
  static __device__ __forceinline__ void write(uint16_t* to, const uint32_t (&from)[4]) {
    *reinterpret_cast<uint4*>(to) = make_uint4(from[0], from[1], from[2], from[3]);
  }

  static constexpr int kParts = (D / 4 + 31) / 32;

  uint16_t* memory_;
  uint4 words_[kParts]{};
};

}  // namespace inflight::cuda
