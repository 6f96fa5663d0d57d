#pragma once

#include "kernels/cuda/sampling_row.cuh"

/// A short list of candidates in one block's shared memory, in no order. Each is compared with every other: for lists
/// of this size that takes less time than a sort. All threads of the block call.
namespace inflight::cuda::sampling {

constexpr int kOwn = kListSize / kThreads;  // entries of a thread: threadIdx.x, threadIdx.x + kThreads

struct Filters {
  int top_k = 0;       // 0: none
  float top_p = 1.0f;  // 1: none
  float min_p = 0.0f;  // 0: none
};

/// The number of entries that rank before `entry` and what they weigh together.
struct Standing {
  int rank = 0;
  double before = 0;
};

static __device__ __noinline__ Standing standing_of(uint64_t entry, int count) {
  const SearchMemory& memory = shared().search;
  Standing out;
#pragma unroll 4
  for (int i = 0; i < count; ++i) {
    const bool ahead = memory.list[i] > entry;
    out.rank += ahead;
    out.before += ahead ? memory.weights[i] : 0.0;
  }
  return out;
}

template <typename Measure>
__device__ __noinline__ void weigh_list(Measure measure, int count) {
  SearchMemory& memory = shared().search;
#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += kThreads) memory.weights[i] = measure(ranked_logit(memory.list[i]));
  __syncthreads();
}

/// Sets to 0 the weight of what the filters drop. `total` = the weight of all candidates, known unless top_k is to be
/// applied here. Returns the sum of this thread's kept weights.
static __device__ __noinline__ double filter_list(int count, Filters filters, double total) {
  SearchMemory& memory = shared().search;
  const int limit = filters.top_k > 0 ? filters.top_k : INT_MAX;
  const bool ranks = limit < count || filters.top_p < 1.0f;
  Standing standings[kOwn];
  double weights[kOwn] = {}, sum = 0;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int at = static_cast<int>(threadIdx.x) + i * kThreads;
    if (at >= count) continue;
    if (ranks) standings[i] = standing_of(memory.list[at], count);
    weights[i] = standings[i].rank < limit ? memory.weights[at] : 0;
    sum += weights[i];
  }
  if (filters.top_p < 1.0f && filters.top_k > 0) total = block_sum(sum);
  const double target = filters.top_p * total;
  __syncthreads();
  sum = 0;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int at = static_cast<int>(threadIdx.x) + i * kThreads;
    if (at >= count) continue;
    const bool in_nucleus = filters.top_p >= 1.0f || standings[i].rank == 0 || standings[i].before < target;
    if (!in_nucleus || weights[i] < fminf(filters.min_p, 1.0f)) weights[i] = 0;
    memory.weights[at] = weights[i];
    sum += weights[i];
  }
  return sum;
}

/// The token that is drawn with `uniform`, in [0, 1), where the list has all that the filters may leave.
static __device__ __noinline__ int draw_from_list(int count, Filters filters, double total, double uniform,
                                                  Weigher weigh) {
  const SearchMemory& memory = shared().search;
  weigh_list(weigh, count);
  const double sum = filter_list(count, filters, total);
  if (threadIdx.x == 0) shared().first = UINT_MAX, shared().last = 0;
  const double target = uniform * block_sum(sum);
#pragma unroll 1
  for (int at = threadIdx.x; at < count; at += kThreads) {
    const auto own = static_cast<uint32_t>(memory.list[at]);  // the complement of the id
    const double weight = memory.weights[at];
    if (weight == 0) continue;
    double through = weight;
#pragma unroll 4
    for (int i = 0; i < count; ++i) through += static_cast<uint32_t>(memory.list[i]) > own ? memory.weights[i] : 0.0;
    atomicMax(&shared().last, ~own);
    if (through > target) atomicMin(&shared().first, ~own);
  }
  __syncthreads();
  // Rounding may keep all short of the target.
  return static_cast<int>(shared().first < UINT_MAX ? shared().first : shared().last);
}

/// This thread's lowest-ranking entry, complemented, of those before which the amounts, with `before`, stay under
/// `target`; 0 without one. The highest of all threads' is the complement of the cut.
template <typename Measure>
__device__ __noinline__ uint64_t cut_of_thread(Measure measure, int count, double before, double target) {
  weigh_list(measure, count);
  uint64_t out = 0;
#pragma unroll 1
  for (int at = threadIdx.x; at < count; at += kThreads) {
    const uint64_t entry = shared().search.list[at];
    const Standing standing = standing_of(entry, count);
    if (standing.rank == 0 || before + standing.before < target) out = max(out, ~entry);
  }
  return out;
}

}  // namespace inflight::cuda::sampling
