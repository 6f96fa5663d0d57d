#pragma once

#include <cuda_runtime.h>

#include <cstdint>

/// Who attends to what in generation attention. The visible keys of a sequence are cut into tiles of kTileTokens at
/// multiples of it, the tiles into units of one tile (in batch-invariant mode: of a size that depends on the sequence
/// alone). All units of all (sequence, head) pairs, in that order, are dealt out to the blocks in equal contiguous
/// shares ("stream-K", Osama et al. 2023), so that lengths of any skew keep every multiprocessor busy to the end.
/// Where each block's share begins is worked out once a step, for all layers of the same heads and window.
namespace inflight::cuda {

inline constexpr unsigned kTileTokens = 64;
inline constexpr int kInvariantUnitTiles = 4;  // least tiles of a batch-invariant unit
inline constexpr int kInvariantUnits = 8;      // most units of a (sequence, head) pair in batch-invariant mode
inline constexpr unsigned kAllLanes = 0xffffffffu;

struct GenerationShape {
  const int32_t* context_lengths;  // [num_sequences]
  int num_sequences;
  int heads;   // of a sequence: KV heads times the row tiles of each
  int window;  // 0: none
  int sinks;   // first tokens that the window never hides
};

/// x / y, exact for quotients below 2^22; a third of the instructions of the operator.
__device__ __forceinline__ int divide(int x, int y) {
  const int near = static_cast<int>(__fdividef(static_cast<float>(x), static_cast<float>(y)));
  const int rest = x - near * y;
  return near + (rest >= y ? 1 : 0) - (rest < 0 ? 1 : 0);
}

/// What a block learns from the plan of the step: where its share begins. 64 bytes.
struct alignas(16) PlanEntry {
  int sequence, head, tile, units_left;
  int first, length, unit;  // the extent of `sequence`
  int padding;              // whether the batch has padding sequences
  int sharers;              // blocks that share the last pair of the share, from this block on
  int sinks;                // of the extent
  int unused[2];
  int blocks[kTileTokens / 16];  // KV blocks of the first tile's slices of 16 tokens; -1: not visible
};

/// The visible keys of one sequence: positions [0, sinks) and [first, length) in tiles [begin, end), `unit` tiles to a
/// unit. With sinks the tiles that the window hides lie among them: nothing is read of those, but they count as work.
/// Only the batch-invariant kernel knows of sinks, so that they cost the other one nothing.
template <bool kInvariant>
struct Extent {
  int first = 0, length = 0, sinks = 0, begin = 0, end = 0, unit = 1;

  Extent() = default;
  __device__ __forceinline__ Extent(const GenerationShape& shape, int context_length)
      : first(shape.window > 0 ? max(0, context_length - shape.window) : 0),
        length(max(0, context_length)),
        sinks(kInvariant ? shape.sinks : 0),
        begin(kInvariant && sinks > 0 ? 0 : static_cast<unsigned>(first) / kTileTokens),
        end((static_cast<unsigned>(length) + kTileTokens - 1) / kTileTokens),
        unit(kInvariant ? max(kInvariantUnitTiles, (end - begin + kInvariantUnits - 1) / kInvariantUnits) : 1) {}

  __device__ __forceinline__ explicit Extent(const PlanEntry& entry)
      : first(entry.first),
        length(entry.length),
        sinks(kInvariant ? entry.sinks : 0),
        begin(kInvariant && sinks > 0 ? 0 : static_cast<unsigned>(first) / kTileTokens),
        end((static_cast<unsigned>(length) + kTileTokens - 1) / kTileTokens),
        unit(kInvariant ? entry.unit : 1) {}

  /// Whether any of the tokens [position, position + count) is visible.
  __device__ __forceinline__ bool any_of(int position, int count) const {
    return position < length && (position + count > first || (kInvariant && position < sinks));
  }
  __device__ __forceinline__ bool all_of(int position, int count) const {
    return position + count <= length && (position >= first || (kInvariant && position + count <= sinks));
  }

  __device__ __forceinline__ int units() const {
    return kInvariant ? divide(end - begin + unit - 1, unit) : end - begin;
  }
};

/// A place in a block's share: a tile of a (sequence, head) pair. Valid while units_left > 0.
template <bool kInvariant>
struct Cursor {
  int sequence, head, tile, unit_end, units_left;
  Extent<kInvariant> extent;

  __device__ __forceinline__ explicit Cursor(const PlanEntry& entry)
      : sequence(entry.sequence), head(entry.head), tile(entry.tile), units_left(entry.units_left), extent(entry) {
    unit_end = min(extent.end, tile + extent.unit);
  }

  __device__ __forceinline__ bool ends_pair() const { return tile + 1 == extent.end; }
  __device__ __forceinline__ bool ends_piece() const {
    return kInvariant ? tile + 1 == unit_end : ends_pair() || units_left == 1;
  }

  __device__ __forceinline__ void advance(const GenerationShape& shape) {
    ++tile;
    if (kInvariant && tile < unit_end) return;
    if (--units_left == 0) return;
    if (tile == extent.end) next_pair(shape);
    if (kInvariant) unit_end = min(extent.end, tile + extent.unit);
  }

 private:
  __device__ __forceinline__ void next_pair(const GenerationShape& shape) {
    if (++head == shape.heads) {
      head = 0;
#pragma unroll 1
      do extent = Extent<kInvariant>(shape, __ldcg(shape.context_lengths + ++sequence));
      while (extent.begin == extent.end);
    }
    tile = extent.begin;
  }
};

/// Reads the block's entry past the L1 cache, which may hold an earlier step's.
__device__ __forceinline__ PlanEntry load_entry(const PlanEntry* plan, int block) {
  constexpr int kWords = sizeof(PlanEntry) / sizeof(int4);
  union {
    int4 words[kWords];
    PlanEntry entry;
  };
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = __ldcg(reinterpret_cast<const int4*>(plan + block) + i);
  return entry;
}

}  // namespace inflight::cuda
