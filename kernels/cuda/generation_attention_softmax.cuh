#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/generation_attention_rows.cuh"

/// What one warp of generation attention computes of one slice of 16 tokens. Both products have the slice's tokens or
/// the vectors' elements as their 16 rows and 8 query heads as their columns: the query heads that share a KV head are
/// few, and rows would be filled up with zeros.
namespace inflight::cuda {

/// One warp's part of a piece so far. The lane's heads are 2 (lane % 4) and the next of each tile of 8; its elements
/// those of Across.
template <typename Tile>
struct RunningSoftmax {
  float sums[Tile::kSteps][Tile::kHeadTiles][4];  // weighted values: 16 elements by 8 heads, as accumulators
  float highest[Tile::kHeadTiles][2];             // of the heads' scores
  float weights[Tile::kHeadTiles][2];             // sum of this lane's tokens only

  __device__ __forceinline__ void reset() {
#pragma unroll
    for (auto& elements : sums)
#pragma unroll
      for (auto& tile : elements)
#pragma unroll
        for (float& sum : tile) sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 2 * Tile::kHeadTiles; ++i) {
      highest[i / 2][i % 2] = -INFINITY;
      weights[i / 2][i % 2] = 0.0f;
    }
  }
};

/// scores[t][e]: token lane / 4 + 8 (e / 2) of the slice, head 8 t + 2 (lane % 4) + e % 2, not yet scaled.
template <typename Tile>
__device__ __forceinline__ void score_slice(const QueryRows<Tile>& rows, const KeySlice<Tile>& keys, int lane,
                                            float (&scores)[Tile::kHeadTiles][4]) {
  float odd[Tile::kHeadTiles][4] = {};  // two chains of products are shorter than one
#pragma unroll
  for (int chunk = 0; chunk < Along<Tile::D>::kChunks; ++chunk)
#pragma unroll
    for (int tile = 0; tile < Tile::kHeadTiles; ++tile) {
      uint32_t left[4], right[4];
      rows.operand(chunk, tile, lane, right);
      keys.operand(2 * chunk, left);
      multiply_add(scores[tile], left, right[0], right[1]);
      if (Along<Tile::D>::words(chunk) == 2) continue;
      keys.operand(2 * chunk + 1, left);
      multiply_add(odd[tile], left, right[2], right[3]);
    }
#pragma unroll
  for (int tile = 0; tile < Tile::kHeadTiles; ++tile)
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[tile][i] += odd[tile][i];
}

/// Scales, caps, biases and masks the scores of this lane, the first of which belongs to `first_token`.
template <bool kInvariant, int kTiles>
__device__ __forceinline__ void adjust_scores(const GenerationParams& p, const Extent<kInvariant>& extent, bool masked,
                                              int first_token, const float (&slopes)[kTiles][2],
                                              float (&scores)[kTiles][4]) {
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float& score = scores[tile][i];
      if (p.cap > 0.0f)  // cap · tanh(score / cap)
        score = p.cap - __fdividef(2.0f * p.cap, fast_exp2(score * p.cap_scale) + 1.0f);
      else
        score *= p.scale;
      const int token = first_token + i / 2 * 8;
      if (p.alibi_slopes) score += slopes[tile][i % 2] * static_cast<float>(token - (extent.length - 1));
      if (masked && !extent.any_of(token, 1)) score = -INFINITY;
    }
  }
}

/// The highest of the lanes that have the same heads.
__device__ __forceinline__ float highest_of_heads(float value) {
#pragma unroll
  for (int step = 4; step < 32; step *= 2) value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}
__device__ __forceinline__ float sum_of_heads(float value) {
#pragma unroll
  for (int step = 4; step < 32; step *= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

/// One step of the online softmax (Milakov and Gimelshein 2018): scores become weights, the sums so far are rescaled
/// where a head's highest score has grown. At least one token of the slice is visible.
template <typename Tile>
__device__ __forceinline__ void weigh(RunningSoftmax<Tile>& softmax, float (&scores)[Tile::kHeadTiles][4]) {
  float factors[Tile::kHeadTiles][2];
  bool grown = false;
#pragma unroll
  for (int tile = 0; tile < Tile::kHeadTiles; ++tile)
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      float& highest = softmax.highest[tile][odd];
      const float top = fmaxf(highest, highest_of_heads(fmaxf(scores[tile][odd], scores[tile][2 + odd])));
      factors[tile][odd] = fast_exp2(highest - top);
      grown |= highest != top;
      highest = top;
      softmax.weights[tile][odd] *= factors[tile][odd];
#pragma unroll
      for (int i = odd; i < 4; i += 2) {
        scores[tile][i] = fast_exp2(scores[tile][i] - top);
        softmax.weights[tile][odd] += scores[tile][i];
      }
    }
  if (__any_sync(kAllLanes, grown))
#pragma unroll
    for (auto& elements : softmax.sums)
#pragma unroll
      for (int tile = 0; tile < Tile::kHeadTiles; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i) elements[tile][i] *= factors[tile][i % 2];
}

template <typename Tile>
__device__ __forceinline__ void add_values(RunningSoftmax<Tile>& softmax, const ValueSlice<Tile>& values,
                                           const float (&weights)[Tile::kHeadTiles][4]) {
  uint32_t right[Tile::kHeadTiles][2];
#pragma unroll
  for (int i = 0; i < 2 * Tile::kHeadTiles; ++i)
    right[i / 2][i % 2] = transpose_matrix(to_bf16_pair(weights[i / 2][i % 2 * 2], weights[i / 2][i % 2 * 2 + 1]));
#pragma unroll
  for (int n = 0; n < Tile::kSteps; ++n) {
    uint32_t left[4];
    values.operand(n, left);
#pragma unroll
    for (int tile = 0; tile < Tile::kHeadTiles; ++tile)
      multiply_add(softmax.sums[n][tile], left, right[tile][0], right[tile][1]);
  }
}

}  // namespace inflight::cuda
