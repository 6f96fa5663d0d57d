#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/generation_attention_schedule.cuh"
#include "kernels/cuda/mma.cuh"

/// What the kernel of generation attention is given, and how its warps load it.
namespace inflight::cuda {

inline constexpr int kGenerationWarps = 4;
inline constexpr int kGenerationThreads = 32 * kGenerationWarps;
inline constexpr int kRowTile = 16;      // query heads at once, at most
inline constexpr int kHeadTile = 8;      // query heads of one matrix product
inline constexpr int kSliceTokens = 16;  // tokens of a tile that one warp takes
static_assert(kGenerationWarps * kSliceTokens == kTileTokens);

/// The rotation of the new tokens and their way into the cache, where the kernel does that, too.
struct GenerationRope {
  const float* frequencies;  // [D / 2]
  float scale;               // factor on cos and sin
  uint16_t* keys;            // the pools of GenerationParams
  uint16_t* values;
};

struct GenerationParams {
  GenerationShape shape;
  const PlanEntry* plan;        // [grid]
  const uint16_t* q;            // [S, Hq, D] bfloat16; with rope [S, Hq + 2 Hkv, D], not rotated yet
  const uint16_t* keys;         // [N, Hkv, P, D] bfloat16
  const uint16_t* values;       // [N, Hkv, P, D] bfloat16
  uint16_t* out;                // [S, Hq, D] bfloat16
  const int32_t* block_tables;  // [S, B]
  const float* alibi_slopes;    // [Hq] or null
  int kv_heads, group, block_shift, num_blocks, table_width;
  int row_tile, row_tiles;  // query heads at once; how often, to take the whole group
  float scale;              // times log2(e): scores are in base 2
  float cap, cap_scale;     // soft cap times log2(e), or 0; 2 scale / cap, in base 2
  int partial_rows;         // rows of a partial result: min(group, row_tile)
  float* partial_sums;      // [slots, partial_rows, D]: weighted values, not yet normalized
  float2* partial_stats;    // [slots, partial_rows]: highest score and sum of weights
  GenerationRope rope;
};

/// The query heads of one (sequence, head) pair.
struct HeadRows {
  int kv_head, first, rows;  // query heads [first, first + rows), at most kRowTile

  __device__ __forceinline__ HeadRows(const GenerationParams& p, int head) : kv_head(head), first(0) {
    if (p.row_tiles > 1) {
      kv_head = divide(head, p.row_tiles);
      first = (head - kv_head * p.row_tiles) * p.row_tile;
    }
    rows = min(p.row_tile, p.group - first);
    first += kv_head * p.group;
  }
};

/// As registers and shared memory allow.
constexpr int generation_blocks_per_sm(int head_size, int head_tiles) {
  if (head_size == 64) return head_tiles == 1 ? 4 : 3;
  if (head_size == 80 && head_tiles == 1) return 4;
  if (head_size < 128) return head_tiles == 1 ? 3 : 2;
  return head_size == 128 ? 2 : 1;
}

/// The sizes of a kernel. Shared memory of a block: a ring of kStages slices (keys, then values) for each warp, then
/// the buffer in which the warps' results meet, then what a rotation needs (for each warp the angles of a position and
/// the new token's key and value), then the query heads where they do not fit in registers. In a slice of vectors of a
/// multiple of 64 elements the 16-byte chunks change places, so that the lanes read from as many banks as there are.
template <int D_, int kHeadTiles_>
struct GenerationTile {
  static constexpr int D = D_;
  static constexpr int kHeadTiles = kHeadTiles_;
  static constexpr int kSteps = D / 16;  // products along or across a vector
  static constexpr int kBlocksPerSm = generation_blocks_per_sm(D, kHeadTiles);
  static constexpr int kChunks = D / 8;  // of 16 bytes, of a vector
  static constexpr bool kSwizzled = D % 64 == 0;
  static constexpr int kSliceBytes = kSliceTokens * D * 2;  // of keys or of values
  static constexpr int kStageBytes = 2 * kSliceBytes;
  static constexpr int kStages = D < 128 ? 1 : 2;  // measured; a slice in registers leaves its stage to the next
  static constexpr int kRingBytes = kStages * kStageBytes;  // of one warp
  static constexpr int kSumsBytes = kGenerationWarps * kHeadTile * D * 4;
  static constexpr int kStatsBytes = kGenerationWarps * kRowTile * 8;
  static constexpr int kAngleBytes = D / 2 * 8;
  static constexpr int kTokenBytes = 2 * D * 2;
  static constexpr int kRopeBytes = kAngleBytes + kTokenBytes;  // of one warp
  static constexpr bool kSharedRows = D > 128;
  static constexpr int kRowsBytes = kSharedRows ? kHeadTile * D * 2 : 0;  // of one warp
  static constexpr int kMeetingAt = kGenerationWarps * kRingBytes;
  static constexpr int kRopeAt = kMeetingAt + kSumsBytes + kStatsBytes;
  static constexpr int kRowsAt = kRopeAt + kGenerationWarps * kRopeBytes;
  static constexpr int kBytes = kRowsAt + kGenerationWarps * kRowsBytes;
  static_assert(!kSharedRows || kHeadTiles == 1);
  static_assert(kBlocksPerSm * (kBytes + 1024) <= 228 * 1024);

  /// Where a float of one warp's part [kHeadTile, D] of the meeting buffer lies.
  static __device__ __forceinline__ int sum_index(int row, int column) {
    return row * D + (column ^ (row / 2 % 2 * 4));
  }
};

/// Where a vector's 16-byte chunk lies in a slice of keys: eight lanes read four chunks of two vectors at a time.
template <typename Tile>
struct KeyLayout {
  static __device__ __forceinline__ uint32_t offset(int row, int chunk) {
    return (row * Tile::kChunks + (Tile::kSwizzled ? chunk ^ (row % 2 * 4) : chunk)) * 16;
  }
};

/// In a slice of values eight lanes read two chunks of every second of eight vectors at a time.
template <typename Tile>
struct ValueLayout {
  static __device__ __forceinline__ uint32_t offset(int row, int chunk) {
    return (row * Tile::kChunks + (Tile::kSwizzled ? chunk ^ (row / 2 % 4 * 2) : chunk)) * 16;
  }
};

/// Which elements of a vector a lane has. Sums over elements do not ask for their order, and rows of a result may stand
/// in any, so that each lane takes neighbours, 16 bytes at a time where the size allows it.
/// Along a product (keys, queries): step `step` sums over elements first(), first() + 1 of the lower half, and two on
/// of the upper half; lanes are told apart by pair = lane % 4. Steps 2 i and 2 i + 1 are neighbours in memory.
template <int D>
struct Along {
  static constexpr int kChunks = (D + 31) / 32;
  static constexpr int words(int chunk) { return D - chunk * 32 >= 32 ? 4 : 2; }
  static __device__ __forceinline__ int first(int chunk, int pair) { return chunk * 32 + pair * 2 * words(chunk); }
};

/// Across it (values): tile `tile` of the result has elements first() and first() + 1 as its rows lane / 4 and
/// lane / 4 + 8.
template <int D>
struct Across {
  static constexpr int kChunks = (D + 63) / 64;
  static constexpr int words(int chunk) { return D - chunk * 64 >= 64 ? 4 : (D - chunk * 64) / 16; }
  static __device__ __forceinline__ int first(int chunk, int row) { return chunk * 64 + row * 2 * words(chunk); }
};

}  // namespace inflight::cuda
