#pragma once

#include "kernels/cuda/sampling_rules.cuh"

/// A row's best token once its rules are applied: where sampling and the ranking of candidates part.
namespace inflight::cuda::sampling {

/// Whether top_k is so small that group_floor() leaves few tokens.
__device__ __forceinline__ bool has_group_floor(const GpuSamplingRow& row) {
  return row.top_k > 1 && row.top_k * 16 <= kGroups * team_size() * 15;
}

// Arrives with the next reduce().
__device__ __forceinline__ void send_group_bests(uint64_t best_of_thread) {
  if (!has_group_floor(shared().row)) return;
  uint32_t key = ranked_key(best_of_thread);
#pragma unroll
  for (int mask = 1; mask < kGroupLanes; mask *= 2) key = max(key, __shfl_xor_sync(~0u, key, mask));
  const int block = lane() % kGroupLanes, group = static_cast<int>(threadIdx.x) / kGroupLanes;
  if (block < team_size()) *of_block(&shared().group_bests[team_rank() * kGroups + group], block) = key;
}

// When the bans leave no token, the best of the banned comes back: a token must be produced.
static __device__ __noinline__ uint64_t banned_best(RuleInputs inputs, Slice slice, uint64_t best_of_thread) {
  const uint64_t before = reduce(best_of_thread, Maximum());
  apply_bans(inputs, slice);
  __syncthreads();
  best_of_thread = slice.best();
  send_group_bests(best_of_thread);
  const uint64_t best = reduce(best_of_thread, Maximum());
  if (ranked_key(best) != kMinusInfinityKey || ranked_key(before) == kMinusInfinityKey) return best;
  const int id = ranked_id(before);
  if (threadIdx.x == 0 && slice.holds(id)) slice.logit(slice.place(id)) = ranked_logit(before);
  __syncthreads();
  return before;
}

// The row's best token once the rules are applied; `best` is this thread's before them.
static __device__ __noinline__ uint64_t ruled_best(RuleInputs inputs, const float* bias, Slice slice, uint64_t best) {
  const GpuSamplingRow& row = shared().row;
  if (row.bias.count > 0) {
    const float* const own_bias = bias + row.bias.begin;
    best = slice.transform([&](int id, float logit) { return logit != logit ? logit : tidied(logit + own_bias[id]); });
  }
  __syncthreads();
  if (penalises(row)) {
    penalise(inputs, slice);
    best = slice.best();
  }
  if (bans(row)) return banned_best(inputs, slice, best);
  send_group_bests(best);
  return reduce(best, Maximum());
}

__device__ __forceinline__ bool has_rules(const GpuSamplingRow& row) {
  return row.bias.count > 0 || penalises(row) || bans(row);
}

__device__ __forceinline__ void copy_row(const GpuSamplingRow& from) {
  static_assert(sizeof(GpuSamplingRow) % 4 == 0 && sizeof(GpuSamplingRow) / 4 <= kThreads);
  if (threadIdx.x < sizeof(GpuSamplingRow) / 4)
    reinterpret_cast<uint32_t*>(&shared().row)[threadIdx.x] = reinterpret_cast<const uint32_t*>(&from)[threadIdx.x];
}

}  // namespace inflight::cuda::sampling
