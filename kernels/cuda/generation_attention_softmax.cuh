#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/generation_attention_tile.cuh"

/// What one warp of generation attention computes of one slice of 16 tokens.
namespace inflight::cuda {

/// One warp's part of a piece so far, rows lane / 4 and lane / 4 + 8.
template <int D>
struct RunningSoftmax {
  float sums[D / 8][4];  // 16 rows of weighted values, as accumulators
  float highest[2];      // of the rows' scores
  float weights[2];      // sum of this lane's columns only

  __device__ __forceinline__ void reset() {
#pragma unroll
    for (auto& tile : sums)
#pragma unroll
      for (float& sum : tile) sum = 0.0f;
    highest[0] = highest[1] = -INFINITY;
    weights[0] = weights[1] = 0.0f;
  }
};

/// scores[n][e]: row lane / 4 + 8 (e / 2), token 8 n + 2 (lane % 4) + e % 2 of the slice, not yet scaled.
template <int D>
__device__ __forceinline__ void score_slice(const QueryRows<D>& rows, uint32_t keys, int lane, float (&scores)[2][4]) {
  float odd[2][4] = {};  // two chains of products are shorter than one
  const int token = lane / 16 * 8 + lane % 8, half = lane / 8 % 2;
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    uint32_t tiles[4], left[4];
    load_matrices(tiles, keys + GenerationTile<D>::offset(token, 2 * k + half));
    rows.operand(k, lane, left);
    multiply_add(k % 2 ? odd[0] : scores[0], left, tiles[0], tiles[1]);
    multiply_add(k % 2 ? odd[1] : scores[1], left, tiles[2], tiles[3]);
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) scores[i / 4][i % 4] += odd[i / 4][i % 4];
}

/// Scales, caps, biases and masks the scores of this lane, the first of which belongs to `first_token`.
template <bool kInvariant>
__device__ __forceinline__ void adjust_scores(const GenerationParams& p, const Extent<kInvariant>& extent, bool masked,
                                              int first_token, const float (&slopes)[2], float (&scores)[2][4]) {
  if (p.cap > 0.0f) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float& score = scores[i / 4][i % 4];  // cap · tanh(score / cap)
      score = p.cap - __fdividef(2.0f * p.cap, fast_exp2(score * p.cap_scale) + 1.0f);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) scores[i / 4][i % 4] *= p.scale;
  }
  if (p.alibi_slopes)
#pragma unroll
    for (int i = 0; i < 8; ++i)
      scores[i / 4][i % 4] +=
          slopes[i % 4 / 2] * static_cast<float>(first_token + i / 4 * 8 + i % 2 - (extent.length - 1));
  if (masked)
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int token = first_token + i / 4 * 8 + i % 2;
      if (!extent.any_of(token, 1)) scores[i / 4][i % 4] = -INFINITY;
    }
}

/// One step of the online softmax (Milakov and Gimelshein 2018): scores become weights, the sums so far are rescaled
/// where a row's highest score has grown. At least one token of the slice is visible.
template <int D>
__device__ __forceinline__ void weigh(RunningSoftmax<D>& softmax, float (&scores)[2][4]) {
  float factors[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top =
        fmaxf(fmaxf(scores[0][2 * half], scores[0][2 * half + 1]), fmaxf(scores[1][2 * half], scores[1][2 * half + 1]));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
    top = fmaxf(top, softmax.highest[half]);
    factors[half] = fast_exp2(softmax.highest[half] - top);
    softmax.highest[half] = top;
    softmax.weights[half] *= factors[half];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float& score = scores[i / 2][2 * half + i % 2];
      score = fast_exp2(score - top);
      softmax.weights[half] += score;
    }
  }
  if (__any_sync(kAllLanes, factors[0] != 1.0f || factors[1] != 1.0f))
#pragma unroll
    for (auto& tile : softmax.sums)
#pragma unroll
      for (int i = 0; i < 4; ++i) tile[i] *= factors[i / 2];
}

template <int D>
__device__ __forceinline__ void add_values(RunningSoftmax<D>& softmax, uint32_t values, int lane,
                                           const float (&weights)[2][4]) {
  const uint32_t left[4] = {to_bf16_pair(weights[0][0], weights[0][1]), to_bf16_pair(weights[0][2], weights[0][3]),
                            to_bf16_pair(weights[1][0], weights[1][1]), to_bf16_pair(weights[1][2], weights[1][3])};
#pragma unroll
  for (int n = 0; n < D / 16; ++n) {
    uint32_t tiles[4];
    load_matrices_transposed(tiles, values + GenerationTile<D>::offset(lane % 16, 2 * n + lane / 16));
    multiply_add(softmax.sums[2 * n], left, tiles[0], tiles[1]);
    multiply_add(softmax.sums[2 * n + 1], left, tiles[2], tiles[3]);
  }
}

}  // namespace inflight::cuda
