#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/generation_attention_tile.cuh"

/// How the warps of generation attention get keys and values into their registers.
namespace inflight::cuda {

/// Which tokens of a warp's slice of a tile are visible.
struct SliceView {
  int position;  // of its first token
  bool any, all;

  template <bool kInvariant>
  __device__ __forceinline__ SliceView(const Cursor<kInvariant>& at, int warp)
      : position(at.tile * static_cast<int>(kTileTokens) + warp * kSliceTokens),
        any(at.extent.any_of(position, kSliceTokens)),
        all(at.extent.all_of(position, kSliceTokens)) {}

  __device__ __forceinline__ bool holds(int token) const {
    return static_cast<unsigned>(token - position) < static_cast<unsigned>(kSliceTokens);
  }
};

/// Where the vectors of a slice begin in the pools, in vectors.
__device__ __forceinline__ int64_t first_vector(const GenerationParams& p, int block, int head, int position) {
  const int64_t run = static_cast<int64_t>(block) * p.kv_heads + HeadRows(p, head).kv_head;
  return (run << p.block_shift) + (position & ((1 << p.block_shift) - 1));
}

/// Asks for the share's first slice on its way to the L2 cache.
template <int D>
__device__ __forceinline__ void prefetch_slice(const GenerationParams& p, const PlanEntry& entry, int block, int warp,
                                               int lane) {
  if (entry.units_left == 0 || static_cast<unsigned>(block) >= static_cast<unsigned>(p.num_blocks)) return;
  const int position = entry.tile * static_cast<int>(kTileTokens) + warp * kSliceTokens;
  const int64_t vector = first_vector(p, block, entry.head, position);
  for (int i = lane * 64; i < kSliceTokens * D; i += 32 * 64) {
    prefetch_line(p.keys + vector * D + i);
    prefetch_line(p.values + vector * D + i);
  }
}

/// Neighbouring elements, past the L1 cache: nobody else on the multiprocessor wants them.
template <int kWords>
__device__ __forceinline__ void stream_words(uint32_t (&to)[kWords], const uint16_t* from) {
  if constexpr (kWords == 4)
    asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "l"(from)
                 : "memory");
  else if constexpr (kWords == 2)
    asm volatile("ld.global.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "l"(from)
                 : "memory");
  else
    asm volatile("ld.global.L1::no_allocate.L2::128B.u32 %0, [%1];" : "=r"(to[0]) : "l"(from) : "memory");
}

/// The leading kWords of four.
template <int kWords>
__device__ __forceinline__ void stream_some(uint32_t (&to)[4], const uint16_t* from) {
  uint32_t some[kWords];
  stream_words<kWords>(some, from);
#pragma unroll
  for (int i = 0; i < kWords; ++i) to[i] = some[i];
}

/// Zeros, in a branch of their own: left to itself the compiler writes zeros before every load, in case there is none.
__device__ __forceinline__ void clear_words(uint32_t* words, int count) {
#pragma unroll
  for (int i = 0; i < count; ++i) asm volatile("mov.b32 %0, 0;" : "=r"(words[i]));
}

/// Keeps the compiler from working out every address anew: what is added to it later are constants.
__device__ __forceinline__ const uint16_t* lane_address(const uint16_t* address) {
  asm("" : "+l"(address));
  return address;
}

/// The keys of a slice: the lane's elements of tokens lane / 4 and lane / 4 + 8.
template <int D>
struct KeySlice {
  uint32_t words[Along<D>::kChunks][2][4];

  __device__ __forceinline__ void load(const uint16_t* keys, int lane) {
    constexpr int kWhole = D / 32;
    const uint16_t* from = lane_address(keys + lane / 4 * D + Along<D>::first(0, lane % 4));
#pragma unroll
    for (int i = 0; i < 2 * kWhole; ++i)  // neighbours in memory one after the other
      stream_words<4>(words[i % kWhole][i / kWhole], from + i % kWhole * 32 + i / kWhole * 8 * D);
    if constexpr (Along<D>::kChunks > kWhole) {
      from = lane_address(keys + lane / 4 * D + Along<D>::first(kWhole, lane % 4));
#pragma unroll
      for (int half = 0; half < 2; ++half)
        stream_some<Along<D>::words(kWhole)>(words[kWhole][half], from + half * 8 * D);
    }
  }

  __device__ __forceinline__ void clear() { clear_words(&words[0][0][0], sizeof(words) / 4); }

  /// The left operand of a step: 16 tokens by 16 elements.
  __device__ __forceinline__ void operand(int step, uint32_t (&left)[4]) const {
    const auto& chunk = words[step / 2];
    left[0] = chunk[0][step % 2 * 2], left[1] = chunk[1][step % 2 * 2];
    left[2] = chunk[0][step % 2 * 2 + 1], left[3] = chunk[1][step % 2 * 2 + 1];
  }
};

/// The values of a slice: the lane's elements of tokens 2 (lane % 4), the next, and the two that are 8 on.
template <int D>
struct ValueSlice {
  uint32_t words[Across<D>::kChunks][4][4];

  static __device__ __forceinline__ int token(int i, int lane) { return lane % 4 * 2 + i % 2 + i / 2 * 8; }

  __device__ __forceinline__ void load(const uint16_t* values, int lane) {
    constexpr int kWhole = D / 64;
    const uint16_t* from = lane_address(values + lane % 4 * 2 * D + Across<D>::first(0, lane / 4));
#pragma unroll
    for (int i = 0; i < 4 * kWhole; ++i)
      stream_words<4>(words[i / 4][i % 4], from + i / 4 * 64 + (i % 2 + i % 4 / 2 * 8) * D);
    if constexpr (Across<D>::kChunks > kWhole) {
      from = lane_address(values + lane % 4 * 2 * D + Across<D>::first(kWhole, lane / 4));
#pragma unroll
      for (int i = 0; i < 4; ++i)
        stream_some<Across<D>::words(kWhole)>(words[kWhole][i], from + (i % 2 + i / 2 * 8) * D);
    }
  }

  __device__ __forceinline__ void clear() { clear_words(&words[0][0][0], sizeof(words) / 4); }

  /// The left operand of a tile: 16 elements by 16 tokens.
  __device__ __forceinline__ void operand(int tile, uint32_t (&left)[4]) const {
    const auto& chunk = words[tile / 4];
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      left[2 * pair] = __byte_perm(chunk[2 * pair][tile % 4], chunk[2 * pair + 1][tile % 4], 0x5410);
      left[2 * pair + 1] = __byte_perm(chunk[2 * pair][tile % 4], chunk[2 * pair + 1][tile % 4], 0x7632);
    }
  }

  /// What the cache holds where no token is visible may be anything, also NaN, and a weight of zero does not silence
  /// that. (Keys need no such care.)
  template <bool kInvariant>
  __device__ __forceinline__ void clear_hidden(const Extent<kInvariant>& extent, int position, int lane) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (extent.any_of(position + token(i, lane), 1)) continue;
#pragma unroll
      for (int word = 0; word < 4 * Across<D>::kChunks; ++word) words[word / 4][i][word % 4] = 0;
    }
  }
};

/// Finds a warp's slices in the pools, a slice ahead of what it computes.
template <bool kInvariant>
struct SliceFinder {
  Cursor<kInvariant> at;
  int warp, lane;
  int block;                            // that the slice lies in; at first from the plan
  int window = 0, window_sequence = 0;  // `blocks` are those of the tiles from `window` on of this sequence
  int blocks = -1;                      // lane i: of the warp's slice of tile window + i; -1: none is visible

  /// Asks for the blocks of the next 32 tiles. While all warps of the grid wait for their slices such a small read
  /// takes microseconds, so it must not come before every slice.
  __device__ __forceinline__ void find_blocks(const GenerationParams& p) {
    window = at.tile;
    window_sequence = at.sequence;
    const int position = (window + lane) * static_cast<int>(kTileTokens) + warp * kSliceTokens;
    const int index = position >> p.block_shift;
    blocks = -1;
    if (at.extent.any_of(position, kSliceTokens) && index < p.table_width)
      blocks = __ldcg(p.block_tables + static_cast<int64_t>(at.sequence) * p.table_width + index);
  }

  /// The vector at which the slice begins, -1 where there is nothing to load.
  __device__ __forceinline__ int64_t vector(const GenerationParams& p) const {
    if (at.units_left == 0 || static_cast<unsigned>(block) >= static_cast<unsigned>(p.num_blocks)) return -1;
    return first_vector(p, block, at.head, at.tile * static_cast<int>(kTileTokens) + warp * kSliceTokens);
  }

  __device__ __forceinline__ void advance(const GenerationParams& p) {
    if (at.units_left == 0) return;
    at.advance(p.shape);
    if (at.units_left == 0) return;
    if (at.sequence != window_sequence || static_cast<unsigned>(at.tile - window) >= 32) find_blocks(p);
    block = __shfl_sync(kAllLanes, blocks, at.tile - window);
  }
};

}  // namespace inflight::cuda
