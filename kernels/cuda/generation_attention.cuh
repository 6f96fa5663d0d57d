#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/generation_attention_pieces.cuh"
#include "kernels/cuda/launch.cuh"

/// Split-KV flash decoding (Dao et al. 2023, "Flash-Decoding") on tensor cores. The query heads that share a KV head
/// are the rows of a 16-row matrix (more heads: several "row tiles", each read as a head of its own). A block is four
/// warps; of each 64-token tile a warp takes 16 tokens, has its own pipeline of asynchronous copies and its own running
/// softmax, and meets the others only where a piece (the block's run of tiles of one pair) ends. Pairs cut between
/// blocks leave partial results, which the block of their first tile collects in the order of the tokens.
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

template <int D, bool kInvariant>
__global__ void __launch_bounds__(kGenerationThreads, GenerationTile<D>::kBlocksPerSm)
    generation_attention_kernel(const __grid_constant__ GenerationParams p) {
  using Tile = GenerationTile<D>;
  extern __shared__ __align__(128) unsigned char shared[];
  unsigned char* meeting = shared + kGenerationWarps * Tile::kRingBytes;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  let_next_start();
  {
    const PlanEntry guess = load_entry(p.plan, blockIdx.x);
    prefetch_slice<D>(p, guess, slice_block(guess, warp), warp, lane);
  }
  wait_for_previous();
  const PlanEntry entry = load_entry(p.plan, blockIdx.x);
  Cursor<kInvariant> at(entry);
  SliceLoader<D, kInvariant> loader{at, shared_address(shared) + warp * Tile::kRingBytes, warp, lane,
                                    slice_block(entry, warp)};
  if (at.units_left > 0) loader.find_blocks(p);
  QueryRows<D> rows;
  rows.shared = reinterpret_cast<uint4*>(meeting + Tile::kFixedBytes - Tile::kRowsBytes);
  RunningSoftmax<D> softmax;
  softmax.reset();
  int piece_begin = at.tile, ahead = 0;
  bool opened = at.tile == at.extent.begin;
#pragma unroll 1
  while (at.units_left > 0) {
    loader.start(p, ahead == 0);
    if (++ahead < Tile::kStages) {
      if (ahead == 1) {
        rows.load(p, at.sequence, at.head, warp, lane);
        rows.publish(warp, lane);
      }
      if (loader.at.units_left > 0) continue;
      for (; ahead < Tile::kStages; ++ahead) close_copies();
      loader.stage = 0;
    }
    wait_for_copies<Tile::kStages - 1>();
    __syncwarp();
    const SliceView slice(at, warp);
    const uint32_t keys = loader.ring + loader.stage * Tile::kStageBytes;
    float scores[2][4] = {};
    if (slice.any) {
      score_slice<D>(rows, keys, lane, scores);
      adjust_scores(p, at.extent, !slice.all, slice.position + lane % 4 * 2, rows.slopes, scores);
    }
    const bool piece_ends = at.ends_piece();
    const Cursor<kInvariant> last = at;
    at.advance(p.shape);
    if (piece_ends && at.units_left > 0) rows.load(p, at.sequence, at.head, warp, lane);  // on its way meanwhile
    if (slice.any) {
      weigh(softmax, scores);
      add_values(softmax, keys + Tile::kSliceBytes, lane, scores);
    }
    if (!piece_ends) continue;
    const Piece piece(p, last, piece_begin, opened, at.units_left == 0, entry.sharers);
    finish_piece<D>(p, piece, softmax, meeting);
    rows.publish(warp, lane);
    softmax.reset();
    piece_begin = at.tile;
    opened = opened || last.ends_pair();
  }
  if (entry.padding) write_zeros(p, p.kv_heads * p.group * D);
}

}  // namespace inflight::cuda
