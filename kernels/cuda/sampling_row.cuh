#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <cstdint>

#include "kernels/cuda/sampling_team.cuh"

/// One row of logits in the shared memory of its team, and how its tokens compare and weigh.
namespace inflight::cuda::sampling {

constexpr uint32_t kMinusInfinityKey = 0x007fffff;

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000); }
__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fffffff); }

/// Orders as the floats do; of a float that is neither NaN nor -0.
__device__ __forceinline__ uint32_t key_of(float logit) {
  const uint32_t bits = __float_as_uint(logit);
  return static_cast<int32_t>(bits) < 0 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float logit_of(uint32_t key) {
  return __uint_as_float(static_cast<int32_t>(key) < 0 ? key & 0x7fffffffu : ~key);
}

/// A token by rank: the higher logit first, of equal ones the lower id. 0: no token.
__device__ __forceinline__ uint64_t ranked(float logit, int id) {
  return uint64_t{key_of(logit)} << 32 | ~static_cast<uint32_t>(id);
}
__device__ __forceinline__ uint32_t ranked_key(uint64_t ranked) { return static_cast<uint32_t>(ranked >> 32); }
__device__ __forceinline__ float ranked_logit(uint64_t ranked) { return logit_of(ranked_key(ranked)); }
__device__ __forceinline__ int ranked_id(uint64_t ranked) { return static_cast<int>(~static_cast<uint32_t>(ranked)); }

/// NaN counts as -inf, and -0 as 0, so that keys of equal logits are equal.
__device__ __forceinline__ float tidied(float logit) { return fmaxf(logit, minus_infinity()) + 0.0f; }

/// e^x for x <= 0, bit for bit what the CPU kernels compute: a draw that lies between two tokens decides alike. Below
/// -87.3, and for NaN, 0.
__device__ __forceinline__ float exp_like_cpu(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 · 2^23: adding it rounds to the nearest integer
  const float shifted = __fmaf_rn(x, 1.44269504f, kMagic);
  const float n = shifted - kMagic;
  const float r = __fmaf_rn(n, 2.12194440e-4f, __fmaf_rn(n, -0.693359375f, x));
  float p = __fmaf_rn(1.0f / 5040, r, 1.0f / 720);
  p = __fmaf_rn(p, r, 1.0f / 120);
  p = __fmaf_rn(p, r, 1.0f / 24);
  p = __fmaf_rn(p, r, 1.0f / 6);
  p = __fmaf_rn(p, r, 0.5f);
  p = __fmaf_rn(p, r, 1.0f);
  p = __fmaf_rn(p, r, 1.0f);
  // n sits in the low bits of `shifted`: moved up, it adds to p's exponent.
  const float result = __uint_as_float((__float_as_uint(shifted) << 23) + __float_as_uint(p));
  return x >= -87.33654f ? result : 0.0f;
}

/// exp((logit - highest) / temperature), and the distance that it decreases with. NaN weighs 0.
class Weigher {
 public:
  /// `highest` is finite. Temperatures beyond 1e±30 act as those.
  __device__ Weigher(float highest, float temperature)
      : highest_(highest), temperature_(fminf(fmaxf(temperature, 1e-30f), 1e30f)), inverse_(1.0f / temperature_) {}

  __device__ float highest() const { return highest_; }
  __device__ float temperature() const { return temperature_; }

  __device__ __forceinline__ float distance(float logit) const { return highest_ - logit; }

  // A quotient by the inverse, corrected by its remainder, rounds as a division does (Markstein 1990).
  __device__ __forceinline__ float at_distance(float distance) const {
    const float quotient = -distance * inverse_;
    return exp_like_cpu(__fmaf_rn(__fmaf_rn(-quotient, temperature_, -distance), inverse_, quotient));
  }

  __device__ __forceinline__ float operator()(float logit) const { return at_distance(distance(logit)); }

 private:
  float highest_;
  float temperature_;
  float inverse_;
};

/// Four consecutive logits.
struct Chunk {
  float logits[4];

  __device__ explicit Chunk(const float4& four) : logits{four.x, four.y, four.z, four.w} {}
  __device__ __forceinline__ float4 packed() const { return make_float4(logits[0], logits[1], logits[2], logits[3]); }
  /// The highest, NaN aside.
  __device__ __forceinline__ float highest() const {
    return fmaxf(fmaxf(logits[0], logits[1]), fmaxf(logits[2], logits[3]));
  }
};

/// A block's share of the row, in chunks of four aligned logits; every warp owns consecutive chunks, so that walking
/// warps in order walks the ids in order. Places outside the row hold NaN once the pads are marked; no others do.
class Slice {
 public:
  __device__ Slice(int64_t row, int vocabulary, int chunks_per_block, int block) : vocabulary_(vocabulary) {
    const int skipped = static_cast<int>(row * vocabulary % 4);
    const int first_chunk = block * chunks_per_block;
    count_ = max(0, min(chunks_per_block, (skipped + vocabulary + 3) / 4 - first_chunk));
    per_warp_ = (chunks_per_block + kWarps - 1) / kWarps;
    first_id_ = first_chunk * 4 - skipped;
  }

  __device__ int size() const { return count_ * 4; }  // logits, pads included
  __device__ int begin(int warp) const { return min(warp * per_warp_, count_); }
  __device__ int end(int warp) const { return min((warp + 1) * per_warp_, count_); }
  __device__ Chunk chunk(int index) const { return Chunk(shared_chunks()[index]); }
  /// Token of a chunk's first logit; negative where the row begins within it.
  __device__ __forceinline__ int id(int chunk) const { return first_id_ + chunk * 4; }
  __device__ __forceinline__ int place(int id) const { return id - first_id_; }
  __device__ bool holds(int id) const { return id >= 0 && id < vocabulary_ && place(id) >= 0 && place(id) < size(); }
  __device__ float& logit(int place) const { return shared_logits()[place]; }

  /// Brings this thread's chunks; `row` [V] is device memory. This thread may read them after finish_load().
  __device__ void start_load(const float* row) const {
    const auto shared = static_cast<uint32_t>(__cvta_generic_to_shared(shared_chunks()));
#pragma unroll 4
    for (int i = own_begin(); i < end(warp()); i += 32) {
      const int bytes = min(4, vocabulary_ - id(i)) * 4;
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared + i * 16), "l"(row + id(i)), "r"(bytes)
                   : "memory");
    }
  }
  __device__ static void finish_load() { asm volatile("cp.async.wait_all;" ::: "memory"); }

  /// Tidies what finish_load() brought to this thread and marks the pads. Returns this thread's best, ranked().
  __device__ __forceinline__ uint64_t tidy() const {
    mark_pads(minus_infinity());  // that they be no best
    const uint64_t best = transform([](int, float logit) { return tidied(logit); });
    mark_pads(not_a_number());
    return best;
  }

  /// body(id of the first, chunk) over this thread's chunks.
  template <typename Body>
  __device__ __forceinline__ void for_each(const Body& body) const {
    const int last = end(warp());
#pragma unroll 2
    for (int i = own_begin(); i < last; i += 32) body(id(i), chunk(i));
  }

  /// logit = body(id, logit) over this thread's places; NaN makes NaN. Returns this thread's best, ranked().
  template <typename Body>
  __device__ __forceinline__ uint64_t transform(const Body& body) const {
    float best = minus_infinity();
    int best_chunk = -1;
    const int last = end(warp());
#pragma unroll 4
    for (int i = own_begin(); i < last; i += 32) {
      Chunk four = chunk(i);
#pragma unroll
      for (int j = 0; j < 4; ++j) four.logits[j] = body(id(i) + j, four.logits[j]);
      shared_chunks()[i] = four.packed();
      const float highest = four.highest();
      if (highest > best) {
        best = highest;
        best_chunk = i;
      }
    }
    return own_best(best, best_chunk);
  }

  /// This thread's best, ranked().
  __device__ __forceinline__ uint64_t best() const {
    float best = minus_infinity();
    int best_chunk = -1;
    for_each([&](int first_id, const Chunk& four) {
      const float highest = four.highest();
      if (highest > best) {
        best = highest;
        best_chunk = place(first_id) / 4;
      }
    });
    return own_best(best, best_chunk);
  }

 private:
  __device__ __forceinline__ int own_begin() const { return begin(warp()) + lane(); }

  __device__ void mark_pads(float mark) const {
    const int last = count_ - 1;
    if (own_begin() == 0) mark_pads(0, mark);
    if (last >= own_begin() && last < end(warp()) && (last - own_begin()) % 32 == 0) mark_pads(last, mark);
  }
  __device__ void mark_pads(int chunk_index, float mark) const {
    if (chunk_index >= count_) return;
    for (int j = 0; j < 4; ++j)
      if (id(chunk_index) + j < 0 || id(chunk_index) + j >= vocabulary_) logit(chunk_index * 4 + j) = mark;
  }

  __device__ uint64_t own_best(float best, int best_chunk) const {
    if (own_begin() >= end(warp())) return 0;
    if (best_chunk < 0) return ranked(best, max(id(own_begin()), 0));  // all are -inf
    int first = 3;
#pragma unroll
    for (int j = 2; j >= 0; --j)
      if (logit(best_chunk * 4 + j) == best) first = j;
    return ranked(best, id(best_chunk) + first);
  }

  int vocabulary_;
  int count_;
  int per_warp_;
  int first_id_;
};

}  // namespace inflight::cuda::sampling
