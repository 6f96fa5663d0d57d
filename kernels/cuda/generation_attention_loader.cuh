#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/generation_attention_tile.cuh"

/// How the warps of generation attention get keys and values into shared memory and from there into their registers.
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
__device__ __forceinline__ void prefetch_slice(const GenerationParams& p, int64_t vector, int lane) {
  if (vector < 0) return;
  for (int i = lane * 64; i < kSliceTokens * D; i += 32 * 64) {
    prefetch_line(p.keys + vector * D + i);
    prefetch_line(p.values + vector * D + i);
  }
}

/// A warp's slices on their way from the pools: kStages of them in shared memory, laid out by KeyLayout and ValueLayout.
template <typename Tile>
class SliceRing {
 public:
  __device__ __forceinline__ SliceRing(unsigned char* memory, int lane)
      : memory_(memory), to_(shared_address(memory)), lane_(lane) {}

  /// Starts the copies of a slice from its first vector on, of zeros if that is -1; the stage must have been taken.
  __device__ __forceinline__ void start(const GenerationParams& p, int64_t vector) {
    const bool there = vector >= 0;
    const int64_t first = (there ? vector : 0) * Tile::D + lane_ * 8;
    const uint32_t to = to_ + stage_ * Tile::kStageBytes;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) copy_16_bytes(to + place<KeyLayout<Tile>>(i), p.keys + first + i * 256, there);
#pragma unroll
    for (int i = 0; i < kCopies; ++i)
      copy_16_bytes(to + Tile::kSliceBytes + place<ValueLayout<Tile>>(i), p.values + first + i * 256, there);
    close();
  }

  /// Counts as a slice that is started and never looked at.
  __device__ __forceinline__ void skip() { close(); }

  /// Waits for the oldest slice, which keys() and values() then are.
  __device__ __forceinline__ void wait() const {
    wait_for_copies<Tile::kStages - 1>();
    __syncwarp();
  }
  __device__ __forceinline__ const unsigned char* keys() const { return memory_ + stage_ * Tile::kStageBytes; }
  __device__ __forceinline__ const unsigned char* values() const { return keys() + Tile::kSliceBytes; }

 private:
  static constexpr int kCopies = kSliceTokens * Tile::kChunks / 32;

  template <typename Layout>
  __device__ __forceinline__ uint32_t place(int i) const {
    const unsigned chunk = i * 32 + lane_;
    if constexpr (!Tile::kSwizzled) return chunk * 16;  // what follows, without a division by 10 or 12
    return Layout::offset(chunk / Tile::kChunks, chunk % Tile::kChunks);
  }

  __device__ __forceinline__ void close() {
    close_copies();
    stage_ = stage_ + 1 == Tile::kStages ? 0 : stage_ + 1;
  }

  unsigned char* memory_;
  uint32_t to_;
  int lane_;
  int stage_ = 0;  // of the oldest slice; once that is taken, of the next to start
};

/// Words of a lane that are neighbours in shared memory: 4, 2 or 1.
template <int kWords>
__device__ __forceinline__ void read_words(uint32_t (&to)[4], const unsigned char* from) {
  if constexpr (kWords == 4) {
    const uint4 all = *reinterpret_cast<const uint4*>(from);
    to[0] = all.x, to[1] = all.y, to[2] = all.z, to[3] = all.w;
  } else if constexpr (kWords == 2) {
    const uint2 all = *reinterpret_cast<const uint2*>(from);
    to[0] = all.x, to[1] = all.y;
  } else {
    to[0] = *reinterpret_cast<const uint32_t*>(from);
  }
}

/// The keys of a slice: the lane's elements of tokens lane / 4 and lane / 4 + 8.
template <typename Tile>
struct KeySlice {
  static constexpr int D = Tile::D;

  uint32_t words[Along<D>::kChunks][2][4];

  /// From the slice's place in shared memory.
  __device__ __forceinline__ void take(const unsigned char* keys, int lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int chunk = 0; chunk < D / 32; ++chunk)
        read_words<4>(words[chunk][half], keys + KeyLayout<Tile>::offset(lane / 4 + half * 8, chunk * 4 + lane % 4));
      if constexpr (D % 32 != 0)
        read_words<2>(words[D / 32][half],
                      keys + KeyLayout<Tile>::offset(lane / 4 + half * 8, D / 32 * 4 + lane % 4 / 2) + lane % 2 * 8);
    }
  }

  /// The left operand of a step: 16 tokens by 16 elements.
  __device__ __forceinline__ void operand(int step, uint32_t (&left)[4]) const {
    const auto& chunk = words[step / 2];
    left[0] = chunk[0][step % 2 * 2], left[1] = chunk[1][step % 2 * 2];
    left[2] = chunk[0][step % 2 * 2 + 1], left[3] = chunk[1][step % 2 * 2 + 1];
  }
};

/// The values of a slice: the lane's elements of tokens 2 (lane % 4), the next, and the two that are 8 on.
template <typename Tile>
struct ValueSlice {
  static constexpr int D = Tile::D;

  uint32_t words[Across<D>::kChunks][4][4];

  static __device__ __forceinline__ int token(int i, int lane) { return lane % 4 * 2 + i % 2 + i / 2 * 8; }

  /// From the slice's place in shared memory.
  __device__ __forceinline__ void take(const unsigned char* values, int lane) {
    constexpr int kRest = D % 64 / 16;  // words of the last chunk
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int chunk = 0; chunk < D / 64; ++chunk)
        read_words<4>(words[chunk][i], values + ValueLayout<Tile>::offset(token(i, lane), chunk * 8 + lane / 4));
      if constexpr (kRest > 0) {
        const int byte = lane / 4 * kRest * 4;
        read_words<kRest>(words[D / 64][i],
                          values + ValueLayout<Tile>::offset(token(i, lane), D / 64 * 8 + byte / 16) + byte % 16);
      }
    }
  }

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

/// Finds a warp's slices in the pools, as many ahead of what it computes as its ring holds.
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
