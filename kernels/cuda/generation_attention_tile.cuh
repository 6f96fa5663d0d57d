#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/generation_attention_schedule.cuh"
#include "kernels/cuda/mma.cuh"

/// What the kernel of generation attention is given, and how its warps load it.
namespace inflight::cuda {

inline constexpr int kGenerationWarps = 4;
inline constexpr int kGenerationThreads = 32 * kGenerationWarps;
inline constexpr int kRowTile = 16;      // query heads at once
inline constexpr int kSliceTokens = 16;  // tokens of a tile that one warp takes
static_assert(kGenerationWarps * kSliceTokens == kTileTokens);

struct GenerationParams {
  GenerationShape shape;
  const PlanEntry* plan;        // [grid]
  const uint16_t* q;            // [S, Hq, D] bfloat16
  const uint16_t* keys;         // [N, Hkv, P, D] bfloat16
  const uint16_t* values;       // [N, Hkv, P, D] bfloat16
  uint16_t* out;                // [S, Hq, D] bfloat16
  const int32_t* block_tables;  // [S, B]
  const float* alibi_slopes;    // [Hq] or null
  int kv_heads, group, row_tiles, block_shift, num_blocks, table_width;
  float scale;            // times log2(e): scores are in base 2
  float cap, cap_scale;   // soft cap times log2(e), or 0; 2 scale / cap, in base 2
  int partial_rows;       // rows of a partial result: min(group, kRowTile)
  float* partial_sums;    // [slots, partial_rows, D]: weighted values, not yet normalized
  float2* partial_stats;  // [slots, partial_rows]: highest score and sum of weights
};

/// The query heads of one (sequence, head) pair.
struct HeadRows {
  int kv_head, first, rows;  // query heads [first, first + rows), at most kRowTile

  __device__ __forceinline__ HeadRows(const GenerationParams& p, int head) : kv_head(head), first(0) {
    if (p.row_tiles > 1) {
      kv_head = divide(head, p.row_tiles);
      first = (head - kv_head * p.row_tiles) * kRowTile;
    }
    rows = min(kRowTile, p.group - first);
    first += kv_head * p.group;
  }
};

/// Shared memory of a block: a ring of kStages slices (keys, then values) for each warp, then the buffer in which the
/// warps' results meet, kMeetingColumns at a time, then the query rows where they do not fit in registers. Vectors are
/// kPitch 16-byte chunks apart; chunks are permuted, or padded to an odd number, so that the eight rows of a matrix
/// load lie in different banks.
template <int D>
struct GenerationTile {
  static constexpr int kChunks = D / 8;
  static constexpr bool kPermuted = kChunks % 8 == 0;
  static constexpr int kPitch = kPermuted ? kChunks : kChunks | 1;
  static constexpr int kSliceBytes = kSliceTokens * kPitch * 16;
  static constexpr int kStageBytes = 2 * kSliceBytes;
  static constexpr int kBlocksPerSm = D <= 80 ? 3 : D <= 128 ? 2 : 1;
  static constexpr int kMeetingColumns = D < 128 ? D : 128;
  static constexpr int kSumsBytes = kGenerationWarps * 8 * kMeetingColumns * 4;
  static constexpr int kStatsBytes = kGenerationWarps * kRowTile * 8;
  static constexpr bool kSharedRows = D > 128;
  static constexpr int kRowsBytes = kSharedRows ? kRowTile * D * 2 : 0;
  static constexpr int kFixedBytes = kSumsBytes + kStatsBytes + kRowsBytes;
  static constexpr int kStages = 2;                         // deeper pipelines only lengthen the queues at the memory
  static constexpr int kRingBytes = kStages * kStageBytes;  // of one warp
  static constexpr int kBytes = kGenerationWarps * kRingBytes + kFixedBytes;
  static_assert(kBlocksPerSm * (kBytes + 1024) <= 228 * 1024);

  static __device__ __forceinline__ uint32_t offset(int row, int chunk) {
    return (row * kPitch + (kPermuted ? chunk ^ (row & 7) : chunk)) * 16;
  }
  /// Where a float of one warp's part [8, kMeetingColumns] of the meeting buffer lies.
  static __device__ __forceinline__ int sum_index(int row, int column) {
    return row * kMeetingColumns + (D % 32 == 0 ? column ^ (row % 4 * 8) : column);
  }
};

/// The rows of one (sequence, head) pair as the left operand of D / 16 products; rows past the group are zero. Where a
/// warp's registers cannot hold them, each warp loads a quarter and all read the whole from shared memory.
template <int D>
struct QueryRows {
  static constexpr bool kShared = GenerationTile<D>::kSharedRows;
  static constexpr int kLoaded = D / 16 / (kShared ? kGenerationWarps : 1);

  uint32_t fragments[kLoaded][4];
  float slopes[2];  // in base 2
  uint4* shared;    // [D / 16, 32 lanes]

  __device__ __forceinline__ void load(const GenerationParams& p, int sequence, int head, int warp, int lane) {
    const HeadRows rows(p, head);
    const int64_t row = static_cast<int64_t>(sequence) * p.kv_heads * p.group + rows.first + lane / 4;
    const uint16_t* q = p.q + row * D + lane % 4 * 2 + (kShared ? warp * kLoaded * 16 : 0);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      slopes[half] = 0.0f;
#pragma unroll
      for (int k = 0; k < 2 * kLoaded; ++k) fragments[k / 2][half + k % 2 * 2] = 0;
      if (half * 8 + lane / 4 >= rows.rows) continue;
      if (p.alibi_slopes) slopes[half] = p.alibi_slopes[rows.first + lane / 4 + 8 * half] * 1.44269504f;
#pragma unroll
      for (int k = 0; k < 2 * kLoaded; ++k)
        fragments[k / 2][half + k % 2 * 2] = __ldcg(reinterpret_cast<const uint32_t*>(q + half * 8 * D + k * 8));
    }
  }

  /// Makes the loaded rows ready for all warps; between pieces, by the whole block.
  __device__ __forceinline__ void publish(int warp, int lane) const {
    if constexpr (kShared) {
#pragma unroll
      for (int k = 0; k < kLoaded; ++k)
        shared[(warp * kLoaded + k) * 32 + lane] =
            make_uint4(fragments[k][0], fragments[k][1], fragments[k][2], fragments[k][3]);
      __syncthreads();
    }
  }

  __device__ __forceinline__ void operand(int k, int lane, uint32_t (&left)[4]) const {
    if constexpr (kShared) {
      const uint4 all = shared[k * 32 + lane];
      left[0] = all.x, left[1] = all.y, left[2] = all.z, left[3] = all.w;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) left[i] = fragments[k][i];
    }
  }
};

/// Which tokens of a warp's slice of a tile are visible.
struct SliceView {
  int position;  // of its first token
  bool any, all;

  template <bool kInvariant>
  __device__ __forceinline__ SliceView(const Cursor<kInvariant>& at, int warp)
      : position(at.tile * static_cast<int>(kTileTokens) + warp * kSliceTokens),
        any(at.extent.any_of(position, kSliceTokens)),
        all(at.extent.all_of(position, kSliceTokens)) {}
};

/// Where the vectors of a slice begin in the pools, in vectors.
__device__ __forceinline__ int64_t first_vector(const GenerationParams& p, int block, int head, int position) {
  const int64_t run = static_cast<int64_t>(block) * p.kv_heads + HeadRows(p, head).kv_head;
  return (run << p.block_shift) + (position & ((1 << p.block_shift) - 1));
}

/// Asks for the share's first slice on its way to the L2 cache. The entry may be an earlier step's, so that this is but
/// a guess; it is right for all layers of a step but the first few.
template <int D>
__device__ __forceinline__ void prefetch_slice(const GenerationParams& p, const PlanEntry& entry, int block, int warp,
                                               int lane) {
  if (entry.units_left == 0 || static_cast<unsigned>(block) >= static_cast<unsigned>(p.num_blocks) ||
      static_cast<unsigned>(entry.head) >= static_cast<unsigned>(p.shape.heads))
    return;
  const int position = entry.tile * static_cast<int>(kTileTokens) + warp * kSliceTokens;
  const int64_t vector = first_vector(p, block, entry.head, position);
  for (int i = lane * 64; i < kSliceTokens * D; i += 32 * 64) {
    prefetch_line(p.keys + vector * D + i);
    prefetch_line(p.values + vector * D + i);
  }
}

/// The loading end of a warp's pipeline: runs kStages - 1 slices ahead of the computing one.
template <int D, bool kInvariant>
struct SliceLoader {
  using Tile = GenerationTile<D>;

  Cursor<kInvariant> at;
  uint32_t ring;  // shared address of the warp's stages
  int warp, lane;
  int block;  // that the share's first slice lies in, from the plan
  int stage = 0;
  int window = 0, window_sequence = 0;  // `blocks` are those of the tiles from `window` on of this sequence
  int blocks = -1;                      // lane i: of the warp's slice of tile window + i; -1: none is visible

  /// Asks for the blocks of the next 32 tiles. While all blocks of the grid fill their pipelines such a small read
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

  /// Starts the copies of the next slice, if there is one, and turns to the one after. `stage` is then the oldest.
  __device__ __forceinline__ void start(const GenerationParams& p, bool first) {
    if (at.units_left > 0) {
      if (!first) block = __shfl_sync(kAllLanes, blocks, at.tile - window);
      if (static_cast<unsigned>(block) < static_cast<unsigned>(p.num_blocks)) {
        const SliceView slice(at, warp);
        const int64_t vector = first_vector(p, block, at.head, slice.position);
        copy(ring + stage * Tile::kStageBytes, p.keys + vector * D, p.values + vector * D, slice);
      }
      at.advance(p.shape);
      if (at.units_left > 0 && (at.sequence != window_sequence || static_cast<unsigned>(at.tile - window) >= 32))
        find_blocks(p);
    }
    close_copies();
    stage = stage + 1 == Tile::kStages ? 0 : stage + 1;
  }

 private:
  static constexpr int kCopies = kSliceTokens * Tile::kChunks / 32;

  /// Tokens that are not visible become zeros: what the cache holds there may be anything, also NaN, and a weight of
  /// zero does not silence that.
  __device__ __forceinline__ void copy(uint32_t destination, const uint16_t* keys, const uint16_t* values,
                                       const SliceView& slice) const {
    if (slice.all) {
#pragma unroll
      for (int i = 0; i < kCopies; ++i) copy_chunk(destination, keys, i, true);
#pragma unroll
      for (int i = 0; i < kCopies; ++i) copy_chunk(destination + Tile::kSliceBytes, values, i, true);
      return;
    }
    const int low = (at.extent.first - slice.position) * Tile::kChunks;
    const int high = (at.extent.length - slice.position) * Tile::kChunks;
    const int sinks = (at.extent.sinks - slice.position) * Tile::kChunks;
#pragma unroll 1
    for (int i = 0; i < kCopies; ++i) {
      const int chunk = i * 32 + lane;
      const bool wanted = chunk < high && (chunk >= low || (kInvariant && chunk < sinks));
      copy_chunk(destination, keys, i, wanted);
      copy_chunk(destination + Tile::kSliceBytes, values, i, wanted);
    }
  }

  __device__ __forceinline__ void copy_chunk(uint32_t destination, const uint16_t* source, int i, bool wanted) const {
    const int chunk = i * 32 + lane;
    copy_16_bytes(destination + Tile::offset(chunk / Tile::kChunks, chunk % Tile::kChunks), source + chunk * 8, wanted);
  }
};

}  // namespace inflight::cuda
