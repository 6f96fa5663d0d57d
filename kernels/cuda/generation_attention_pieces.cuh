#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/generation_attention_softmax.cuh"

/// How the results of the warps of a block, and of the blocks that share a (sequence, head) pair, become one.
namespace inflight::cuda {

/// A block's run of tiles of one pair. Where the pair is cut into several pieces, the block that has its first tile
/// collects the partial results of the others. That piece is the last of its block's share and the ones it waits for
/// are the first of theirs, so nobody waits in a circle, nor for long.
struct Piece {
  int sequence;
  HeadRows heads;
  bool whole;             // the result is the pair's
  int slot = -1;          // where this piece's partial result goes
  int first_slot, count;  // partial results to collect

  /// The piece [begin, at.tile]; `opened` says that the pair began in this share, `ends` that the share ends.
  template <bool kInvariant>
  __device__ __forceinline__ Piece(const GenerationParams& p, const Cursor<kInvariant>& at, int begin, bool opened,
                                   bool ends, int sharers)
      : sequence(at.sequence), heads(p, at.head), whole(begin == at.extent.begin && at.ends_pair()), count(0) {
    if constexpr (kInvariant) {
      first_slot = (sequence * p.shape.heads + at.head) * kInvariantUnits;
      slot = first_slot + divide(begin - at.extent.begin, at.extent.unit);
      if (opened && (ends || at.ends_pair())) count = at.extent.units();
    } else {
      first_slot = static_cast<int>(blockIdx.x) + 1;
      if (opened)
        count = sharers - 1;
      else
        slot = static_cast<int>(blockIdx.x);
    }
  }

  /// The first element of the row's output.
  template <int D>
  __device__ __forceinline__ uint16_t* output(const GenerationParams& p, int row) const {
    return p.out + (static_cast<int64_t>(sequence) * p.kv_heads * p.group + heads.first + row) * D;
  }
};

/// Four columns of a row's result over some of its tokens.
struct PartialRow {
  float highest = -INFINITY, weights = 0.0f;
  float4 sums = {0.0f, 0.0f, 0.0f, 0.0f};

  /// Absent ones have -infinity as their highest score.
  template <int kCount>
  __device__ __forceinline__ void add(const float2 (&stats)[kCount], const float4 (&more)[kCount]) {
    float top = highest;
#pragma unroll
    for (const float2& one : stats) top = fmaxf(top, one.x);
    const float base = top == -INFINITY ? 0.0f : top;
    scale(fast_exp2(highest - base));
    highest = top;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float factor = fast_exp2(stats[i].x - base);
      weights += stats[i].y * factor;
      sums.x += more[i].x * factor;
      sums.y += more[i].y * factor;
      sums.z += more[i].z * factor;
      sums.w += more[i].w * factor;
    }
  }

  __device__ __forceinline__ void write(uint16_t* out) {
    scale(__fdividef(1.0f, weights));
    *reinterpret_cast<uint2*>(out) = make_uint2(to_bf16_pair(sums.x, sums.y), to_bf16_pair(sums.z, sums.w));
  }

 private:
  __device__ __forceinline__ void scale(float factor) {
    weights *= factor;
    sums.x *= factor;
    sums.y *= factor;
    sums.z *= factor;
    sums.w *= factor;
  }
};

/// Partial results travel without fences or counters: a word that has not arrived yet is kAbsent, a NaN that no
/// arithmetic gives; who has read a word makes it absent again.
inline constexpr uint32_t kAbsent = 0xffffffffu;

__device__ __forceinline__ bool absent(float word) { return __float_as_uint(word) == kAbsent; }

__device__ __forceinline__ float4 load_words(const float4* from) {
  float4 out;
  asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(out.x), "=f"(out.y), "=f"(out.z), "=f"(out.w)
               : "l"(from)
               : "memory");
  return out;
}

__device__ __forceinline__ float2 load_words(const float2* from) {
  float2 out;
  asm volatile("ld.relaxed.gpu.global.v2.f32 {%0, %1}, [%2];" : "=f"(out.x), "=f"(out.y) : "l"(from) : "memory");
  return out;
}

__device__ __forceinline__ void store_words(float4* to, const float4& words) {
  asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(words.x), "f"(words.y),
               "f"(words.z), "f"(words.w)
               : "memory");
}

__device__ __forceinline__ void store_words(float2* to, const float2& words) {
  asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(words.x), "f"(words.y) : "memory");
}

/// Adds the partial results that the piece collects to `result`, in the order of the tokens, as they arrive.
template <typename Tile>
__device__ __forceinline__ void collect(const GenerationParams& p, const Piece& piece, int row, int column,
                                        PartialRow& result) {
  constexpr int D = Tile::D, kAtOnce = D == 128 && Tile::kHeadTiles == 1 ? 8 : 4;  // as there are registers for
  const float none = __uint_as_float(kAbsent);
  const int last_row = (piece.first_slot + piece.count - 1) * p.partial_rows + row;
  const auto sums_of = [&](int at) {
    return reinterpret_cast<float4*>(p.partial_sums + static_cast<int64_t>(at) * D + column);
  };
#pragma unroll 1
  for (int first = 0; first < piece.count; first += kAtOnce) {
    float2 stats[kAtOnce];
    float4 sums[kAtOnce];
    bool waiting = true;
#pragma unroll 1
    while (waiting) {
      waiting = false;
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int at = last_row - max(piece.count - 1 - first - j, 0) * p.partial_rows;
        stats[j] = load_words(p.partial_stats + at);
        sums[j] = load_words(sums_of(at));
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        waiting |= absent(stats[j].x) || absent(stats[j].y) || absent(sums[j].x) || absent(sums[j].y) ||
                   absent(sums[j].z) || absent(sums[j].w);
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int left = piece.count - 1 - first - j;
      store_words(sums_of(last_row - max(left, 0) * p.partial_rows), make_float4(none, none, none, none));
      if (left < 0) stats[j].x = -INFINITY;
    }
    result.add(stats, sums);
  }
}

/// Makes the collected statistics absent again, once all threads have read them.
__device__ __forceinline__ void clear_stats(const GenerationParams& p, const Piece& piece) {
  const float none = __uint_as_float(kAbsent);
  const int row = threadIdx.x % kRowTile;
#pragma unroll 1
  for (int i = threadIdx.x / kRowTile; i < piece.count; i += kGenerationThreads / kRowTile)
    if (row < piece.heads.rows)
      store_words(p.partial_stats + (piece.first_slot + i) * p.partial_rows + row, make_float2(none, none));
}

/// Adds up the warps' results in the meeting buffer, rows from `first_row` on, and stores
/// them as a partial result or, with what is collected, as the pair's output.
template <typename Tile>
__device__ __forceinline__ void merge_warps(const GenerationParams& p, const Piece& piece, const float* sums,
                                            const float2* stats, int first_row) {
  constexpr int D = Tile::D, kVectors = D / 4;
#pragma unroll 1
  for (int i = threadIdx.x; i < min(kHeadTile, piece.heads.rows - first_row) * kVectors; i += kGenerationThreads) {
    const int row = static_cast<unsigned>(i) / kVectors, column = static_cast<unsigned>(i) % kVectors * 4;
    float2 all_stats[kGenerationWarps];
    float4 all_sums[kGenerationWarps];
#pragma unroll
    for (int w = 0; w < kGenerationWarps; ++w) {
      all_stats[w] = stats[w * kRowTile + first_row + row];
      all_sums[w] = *reinterpret_cast<const float4*>(sums + w * kHeadTile * D + Tile::sum_index(row, column));
    }
    PartialRow result;
    result.add(all_stats, all_sums);
    if (!piece.whole && piece.slot >= 0) {
      const int at = piece.slot * p.partial_rows + first_row + row;
      store_words(reinterpret_cast<float4*>(p.partial_sums + static_cast<int64_t>(at) * D + column), result.sums);
      if (column == 0) store_words(p.partial_stats + at, make_float2(result.highest, result.weights));
      result = PartialRow();
    }
    if (!piece.whole && piece.count > 0) collect<Tile>(p, piece, first_row + row, column, result);
    if (piece.whole || piece.count > 0) result.write(piece.output<D>(p, first_row + row) + column);
  }
}

/// Heads [8 tile, 8 tile + 8) to a warp's part of the meeting buffer.
template <typename Tile>
__device__ __forceinline__ void store_heads(const RunningSoftmax<Tile>& softmax, int tile, int lane, float* part) {
#pragma unroll
  for (int n = 0; n < Tile::kSteps; ++n)
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const int column = Across<Tile::D>::first(n / 4, lane / 4) + n % 4 * 2;
      *reinterpret_cast<float2*>(part + Tile::sum_index(lane % 4 * 2 + odd, column)) =
          make_float2(softmax.sums[n][tile][odd], softmax.sums[n][tile][2 + odd]);
    }
}

/// The four warps' softmaxes become the pair's output, or a partial result of it. `meeting` is the block's buffer.
template <typename Tile>
__device__ __forceinline__ void finish_piece(const GenerationParams& p, const Piece& piece,
                                             const RunningSoftmax<Tile>& softmax, unsigned char* meeting) {
  auto* sums = reinterpret_cast<float*>(meeting);                       // [kGenerationWarps, kHeadTile, D]
  auto* stats = reinterpret_cast<float2*>(meeting + Tile::kSumsBytes);  // [kGenerationWarps, kRowTile]
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int tile = 0; tile < Tile::kHeadTiles; ++tile) {
    if (tile * kHeadTile >= piece.heads.rows) break;
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const float weights = sum_of_heads(softmax.weights[tile][odd]);
      if (lane < 4)
        stats[warp * kRowTile + tile * kHeadTile + lane * 2 + odd] = make_float2(softmax.highest[tile][odd], weights);
    }
    store_heads<Tile>(softmax, tile, lane, sums + warp * kHeadTile * Tile::D);
    __syncthreads();
    merge_warps<Tile>(p, piece, sums, stats, tile * kHeadTile);
    __syncthreads();
  }
  if (!piece.whole) clear_stats(p, piece);
}

}  // namespace inflight::cuda
