#pragma once

#include <cfloat>
#include <climits>

#include "kernels/cuda/sampling_row.cuh"

/// Where in a row's ranking a number of tokens, or a share of their weight, is reached, by a histogram of the distances
/// to the highest logit.
namespace inflight::cuda::sampling {

static_assert(kBins == 4 * kThreads);
constexpr int kCountBits = 22;  // a bin and a number of tokens share 32 bits

/// The tokens up to this one by rank are kept.
struct Cut {
  float logit = minus_infinity();
  int id = INT_MAX;

  __device__ __forceinline__ bool keeps(float other, int other_id) const {
    return (other > logit) | ((other == logit) & (other_id <= id));
  }
};

/// Keys of both ends, inclusive. The tokens above `high` stay below the target, those down to `low` reach it.
struct Bracket {
  uint32_t low;
  uint32_t high;

  __device__ float low_logit() const { return logit_of(low); }
  /// Tokens above this logit are above the bracket; -0 is no logit's key, and compares as 0.
  __device__ float high_logit() const { return logit_of(high == 0x7fffffff ? high - 1 : high); }
};

/// What a histogram tells of the cut's place.
struct Enclosure {
  int first = -1;        // bin that may hold it; -1: all of the bins together do not reach the target
  int last = kBins - 1;  // last bin that may
  uint32_t before = 0;   // tokens in the bins before
  uint32_t through = 0;  // tokens up to the last bin
};

/// Adds up what the tokens weigh.
struct ByWeight {
  static constexpr bool kWeighs = true;
  Weigher weigh;
  __device__ __forceinline__ float operator()(float logit) const { return weigh(logit); }
  __device__ __forceinline__ float at_distance(float distance) const { return weigh.at_distance(distance); }
};

/// Counts them.
struct ByCount {
  static constexpr bool kWeighs = false;
  __device__ __forceinline__ float operator()(float) const { return 1.0f; }
  __device__ __forceinline__ float at_distance(float) const { return 1.0f; }
};

/// Bins of equal width over the distances of a bracket.
struct Bins {
  float begin;
  float scale;  // bins per unit

  __device__ Bins(const Bracket& bracket, const Weigher& weigh) : begin(weigh.distance(logit_of(bracket.high))) {
    const float range = weigh.distance(logit_of(bracket.low)) - begin;
    scale = kBins / fminf(fmaxf(range, 1e-30f), FLT_MAX);
  }
  __device__ __forceinline__ uint32_t of(float distance) const {
    return __float2uint_rz(fminf((distance - begin) * scale, kBins - 1.0f));
  }
  /// Where a bin begins and ends, moved out by more than the roundings of of() can.
  __device__ float begin_of(int bin) const { return fmaxf(edge(bin - 0.01f) * (1 - 1e-6f), 0.0f); }
  __device__ float end_of(int bin) const { return edge(bin + 1.01f) * (1 + 1e-6f); }

 private:
  __device__ float edge(float bins) const { return begin + bins / scale; }
};

// Each block adds up one part of the bins for all.
static __device__ __noinline__ void share_histogram() {
  SearchMemory& memory = shared().search;
  const int size = team_size(), part = kBins / size;
  for (int i = threadIdx.x; i < part; i += kThreads) {
    const int bin = team_rank() * part + i;
    uint32_t counts[kMaxBlocks] = {}, total = 0;
#pragma unroll
    for (int block = 0; block < kMaxBlocks; ++block)
      if (block < size) counts[block] = *of_block(&memory.histogram[bin], block);
#pragma unroll
    for (const uint32_t count : counts) total += count;
#pragma unroll
    for (int block = 0; block < kMaxBlocks; ++block)
      if (block < size) *of_block(&memory.totals[bin], block) = total;
  }
  synchronize_team();
}

// Counts the kept tokens of the bracket by bins, over all blocks. Returns the amount of those above it, or of all.
template <typename Measure>
__device__ __noinline__ double fill(Slice slice, Measure measure, Weigher weigh, Bracket bracket, Cut kept, bool all) {
  uint32_t (&histogram)[kBins] = shared().search.histogram;
#pragma unroll
  for (int i = 0; i < kBins; i += kThreads) histogram[i + threadIdx.x] = 0;
  __syncthreads();
  const Bins bins(bracket, weigh);
  const float low = bracket.low_logit(), high = bracket.high_logit();
  double sum = 0;
  slice.for_each([&](int id, const Chunk& four) {
    if (!all && !(four.highest() >= low)) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float logit = four.logits[i];
      const bool keeps = kept.keeps(logit, id + i);
      const float amount = measure(logit);
      sum += static_cast<double>(keeps & (all | (logit > high)) ? amount : 0.0f);
      if (keeps & (logit >= low) & !(logit > high)) atomicAdd(&histogram[bins.of(weigh.distance(logit))], 1);
    }
  });
  sum = reduce(sum, Add());
  share_histogram();
  return sum;
}

// A bin amounts to its count times what a token at either edge does, at most and at least.
template <typename Measure>
__device__ __noinline__ Enclosure enclose(Measure measure, Bins bins, double above, double target) {
  Shared& memory = shared();
  const int first_bin = 4 * static_cast<int>(threadIdx.x);
  const uint4 four = reinterpret_cast<const uint4*>(memory.search.totals)[threadIdx.x];
  const uint32_t counts[4] = {four.x, four.y, four.z, four.w};
  double most[4], least[4], most_sum = 0, least_sum = 0;
  uint32_t count_sum = 0;
  constexpr double kSlack = Measure::kWeighs ? 1e-6 : 0;  // for the roundings of the weights
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    most[i] = least[i] = counts[i];
    if (counts[i] > 0) {
      most[i] *= measure.at_distance(bins.begin_of(first_bin + i)) * (1 + kSlack);
      least[i] *= measure.at_distance(bins.end_of(first_bin + i)) * (1 - kSlack);
    }
    most_sum += most[i];
    least_sum += least[i];
    count_sum += counts[i];
  }
  const double most_within = warp_inclusive_sum(most_sum), least_within = warp_inclusive_sum(least_sum);
  const uint32_t count_within = warp_inclusive_sum(count_sum);
  if (lane() == 31) {
    memory.warp_sums[0][warp()] = most_within;
    memory.warp_sums[1][warp()] = least_within;
    memory.warp_words[warp()] = count_within;
  }
  if (threadIdx.x == 0) memory.first = memory.last = UINT_MAX;
  __syncthreads();
  double most_before = above + most_within - most_sum, least_before = above + least_within - least_sum;
  uint32_t before = count_within - count_sum;
  Enclosure out;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    most_before += i < warp() ? memory.warp_sums[0][i] : 0;
    least_before += i < warp() ? memory.warp_sums[1][i] : 0;
    before += i < warp() ? memory.warp_words[i] : 0;
    out.through += memory.warp_words[i];
  }
  uint32_t first = UINT_MAX, last = UINT_MAX;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t bin = static_cast<uint32_t>(first_bin + i) << kCountBits;
    most_before += most[i];
    least_before += least[i];
    if (counts[i] > 0 && most_before >= target) first = min(first, bin | before);
    before += counts[i];
    if (counts[i] > 0 && least_before >= target) last = min(last, bin | before);
  }
  first = __reduce_min_sync(~0u, first);
  last = __reduce_min_sync(~0u, last);
  if (lane() == 0) {
    atomicMin(&memory.first, first);
    atomicMin(&memory.last, last);
  }
  __syncthreads();
  first = memory.first;
  last = memory.last;
  constexpr uint32_t kCountMask = (1u << kCountBits) - 1;
  if (first != UINT_MAX) out.first = static_cast<int>(first >> kCountBits), out.before = first & kCountMask;
  if (last != UINT_MAX) out.last = static_cast<int>(last >> kCountBits), out.through = last & kCountMask;
  return out;
}

__device__ inline Bracket narrowed(const Bracket& bracket, const Bins& bins, const Enclosure& enclosure,
                                   const Weigher& weigh) {
  Bracket out = bracket;
  const auto logit_at = [&](float distance) { return weigh.highest() - distance + 0.0f; };
  // Two keys more for the rounding of the difference.
  if (enclosure.first > 0) out.high = min(out.high, key_of(logit_at(bins.begin_of(enclosure.first))) + 2);
  if (enclosure.last < kBins - 1) out.low = max(out.low, key_of(logit_at(bins.end_of(enclosure.last))) - 2);
  return out;
}

}  // namespace inflight::cuda::sampling
