#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/generation_attention_pieces.cuh"
#include "kernels/cuda/launch.cuh"

/// Split-KV flash decoding (Dao et al. 2023, "Flash-Decoding") on tensor cores. The query heads that share a KV head
/// are the 8 columns of a matrix product, or of two (more heads: several "row tiles", each read as a head of its own).
/// A block is four warps; of each 64-token tile a warp takes 16 tokens, has its own pipeline of asynchronous copies and
/// its own running softmax, and meets the others only where a piece (the block's run of tiles of one pair) ends. A
/// slice goes from shared memory to registers as a whole, so that its place is free for the copies of one further on
/// while it is computed. Pairs cut between blocks leave partial results, which the block of their first tile collects
/// in the order of the tokens.
///
/// With kRope the queries, keys and values of the new tokens come as the product left them: queries are rotated where
/// they are loaded, and the warp whose slice has the new position rotates its key, puts key and value over what the
/// cache held there, and writes them to the cache.
///
/// A launch of a few microseconds is mostly instructions executed once, from a cold instruction cache: what runs once
/// is kept short and not unrolled.
namespace inflight::cuda {

/// Output rows of padding sequences.
__device__ __forceinline__ void write_zeros(const GenerationParams& p, int row_elements) {
#pragma unroll 1
  for (int s = blockIdx.x; s < p.shape.num_sequences; s += gridDim.x) {
    if (__ldcg(p.shape.context_lengths + s) > 0) continue;
    auto* row = reinterpret_cast<uint4*>(p.out + static_cast<int64_t>(s) * row_elements);
#pragma unroll 1
    for (int i = threadIdx.x; i < row_elements / 8; i += kGenerationThreads) row[i] = uint4{};
  }
}

/// The KV block of the warp's slice of the share's first tile.
__device__ __forceinline__ int slice_block(const PlanEntry& entry, int warp) {
  const int low = warp % 2 ? entry.blocks[1] : entry.blocks[0], high = warp % 2 ? entry.blocks[3] : entry.blocks[2];
  return warp < 2 ? low : high;
}

/// Starts the next slice of the share, if there is one, and tells where it begins.
template <typename Tile, bool kInvariant>
__device__ __forceinline__ int64_t start_next(const GenerationParams& p, SliceFinder<kInvariant>& finder,
                                              SliceRing<Tile>& ring) {
  finder.advance(p);
  const int64_t vector = finder.vector(p);
  if (finder.at.units_left > 0)
    ring.start(p, vector);
  else
    ring.skip();
  return vector;
}

template <typename Tile, bool kInvariant, bool kRope>
__global__ void __launch_bounds__(kGenerationThreads, Tile::kBlocksPerSm)
    generation_attention_kernel(const __grid_constant__ GenerationParams p) {
  constexpr int D = Tile::D;
  extern __shared__ __align__(128) unsigned char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  unsigned char* const rope = shared + Tile::kRopeAt + warp * Tile::kRopeBytes;
  auto* const angles = reinterpret_cast<float2*>(rope);
  SliceRing<Tile> ring(shared + warp * Tile::kRingBytes, lane);
  NewToken<Tile> token(rope + Tile::kAngleBytes);
  let_next_start();
  const PlanEntry entry = load_entry(p.plan, blockIdx.x);  // see "Rules of a kernel" in README.md: the one exception
  Cursor<kInvariant> at(entry);
  SliceFinder<kInvariant> finder{at, warp, lane, slice_block(entry, warp)};
  int64_t vectors[Tile::kStages];  // where the slices of the ring begin, the oldest first
  vectors[0] = finder.vector(p);
  if constexpr (kRope) {
    // After the plan nobody else writes to this layer's cache (README.md); what lies where the new token goes is
    // replaced.
    if (at.units_left > 0) {
      ring.start(p, vectors[0]);
      make_angles<Tile>(p, entry.length - 1, angles, lane);
    }
  } else {
    prefetch_slice<D>(p, vectors[0], lane);
  }
  wait_for_previous();
  QueryRows<Tile> rows;
  rows.shared = reinterpret_cast<uint4*>(shared + Tile::kRowsAt + warp * Tile::kRowsBytes);
  RunningSoftmax<Tile> softmax;
  softmax.reset();
  const auto load_rows = [&] {
    rows.load(p, (p.group + (kRope ? 2 : 0)) * p.kv_heads, at.sequence, at.head, lane);
    if (kRope && (at.extent.length - 1) / kSliceTokens % kGenerationWarps == warp)
      token.load(p, at.sequence, at.head, lane);
  };
  const auto publish_rows = [&] {
    rows.template publish<kRope>(angles, lane);
    if (kRope) token.publish(lane);
  };
  if (at.units_left > 0) {
    if (!kRope) ring.start(p, vectors[0]);
    load_rows();
    finder.find_blocks(p);
#pragma unroll
    for (int i = 1; i < Tile::kStages; ++i) vectors[i] = start_next(p, finder, ring);
    publish_rows();
  }
  int piece_begin = at.tile;
  bool opened = at.tile == at.extent.begin;
#pragma unroll 1
  while (at.units_left > 0) {
    const SliceView slice(at, warp);
    KeySlice<Tile> keys;
    ValueSlice<Tile> values;
    ring.wait();
    const int row = at.extent.length - 1 - slice.position;
    const bool writes = kRope && slice.holds(at.extent.length - 1), cached = vectors[0] >= 0;
    const int64_t element = (vectors[0] + row) * D;
    keys.take(ring.keys(), lane);
    if (writes) token.put_key(keys, row, angles, cached ? p.rope.keys + element : nullptr, lane);
    values.take(ring.values(), lane);
    if (writes) token.put_value(values, row, cached ? p.rope.values + element : nullptr, lane);
    __syncwarp();  // all lanes have what the next copies overwrite
#pragma unroll
    for (int i = 1; i < Tile::kStages; ++i) vectors[i - 1] = vectors[i];
    vectors[Tile::kStages - 1] = start_next(p, finder, ring);
    float scores[Tile::kHeadTiles][4] = {};
    if (slice.any) {
      score_slice<Tile>(rows, keys, lane, scores);
      adjust_scores(p, at.extent, !slice.all, slice.position + lane / 4, rows.slopes, scores);
    }
    const bool piece_ends = at.ends_piece();
    const Cursor<kInvariant> last = at;
    at.advance(p.shape);
    if (piece_ends && at.units_left > 0) {
      if (kRope && at.sequence != last.sequence) make_angles<Tile>(p, at.extent.length - 1, angles, lane);
      load_rows();  // on its way meanwhile
    }
    if (slice.any) {
      weigh<Tile>(softmax, scores);
      if (!slice.all) values.clear_hidden(last.extent, slice.position, lane);
      add_values<Tile>(softmax, values, scores);
    }
    if (!piece_ends) continue;
    const Piece piece(p, last, piece_begin, opened, at.units_left == 0, entry.sharers);
    finish_piece<Tile>(p, piece, softmax, shared + Tile::kMeetingAt);
    if (at.units_left > 0) publish_rows();
    softmax.reset();
    piece_begin = at.tile;
    opened = opened || last.ends_pair();
  }
  if (entry.padding) write_zeros(p, p.kv_heads * p.group * D);
}

}  // namespace inflight::cuda
