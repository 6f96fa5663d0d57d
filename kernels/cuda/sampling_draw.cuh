#pragma once

#include "kernels/cuda/sampling_row.cuh"

/// The draw among all tokens of a row by their amounts, in the order of ids.
namespace inflight::cuda::sampling {

/// The part in which running sums pass a target; the last one with an amount where rounding keeps all short of it.
struct Passing {
  int part = -1;
  double before = 0;  // sum of the parts before it
};

template <typename Part>
__device__ Passing find_passing(int count, const Part& part, double before, double target) {
  Passing out{-1, before};
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const double amount = part(i);
    if (amount == 0) continue;
    out = {i, before};
    before += amount;
    if (before > target) break;
  }
  return out;
}

/// The first token of 32 chunks with which the amounts exceed `target`, else the last one with an amount. A warp calls.
template <typename Amount>
__device__ int locate_in_group(const Slice& slice, int first_chunk, int end, const Amount& amount, double before,
                               double target) {
  const int chunk = first_chunk + lane();
  double amounts[4] = {}, sum = 0;
  if (chunk < end) {
    const Chunk four = slice.chunk(chunk);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum += amounts[i] = amount(slice.id(chunk) + i, four.logits[i]);
  }
  const double through = before + warp_inclusive_sum(sum);
  double running = through - sum;
  int hit = -1, last = -1;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (amounts[i] == 0) continue;
    running += amounts[i];
    last = i;
    if (hit < 0 && running > target) hit = i;
  }
  const uint32_t hits = __ballot_sync(~0u, sum > 0 && through > target);
  const uint32_t nonzero = __ballot_sync(~0u, sum > 0);
  const int source = hits != 0 ? __ffs(hits) - 1 : 31 - __clz(nonzero);
  return __shfl_sync(~0u, slice.id(chunk) + (hit >= 0 ? hit : last), source);
}

/// The first token with which the amounts exceed `target`. All threads call, right after a reduce() of their sums of
/// `amount(id, logit)`. Warp 0 of the one block that holds the token returns it, all others -1.
template <typename Amount>
__device__ __noinline__ int locate(Slice slice, Amount amount, double target) {
  const Passing block = find_passing(team_size(), [](int i) { return block_part<double>(i); }, 0, target);
  if (block.part != team_rank()) return -1;
  const Passing owner = find_passing(kWarps, [](int i) { return warp_part<double>(i); }, block.before, target);
  const int begin = slice.begin(owner.part), end = slice.end(owner.part);
  const int groups = (end - begin + 31) / 32;
  double* const group_sums = shared().chunk_group_sums;
#pragma unroll 1
  for (int group = warp(); group < groups; group += kWarps) {
    const int chunk = begin + group * 32 + lane();
    double sum = 0;
    if (chunk < end) {
      const Chunk four = slice.chunk(chunk);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum += amount(slice.id(chunk) + i, four.logits[i]);
    }
    sum = warp_reduce<32>(sum, Add());
    if (lane() == 0) group_sums[group] = sum;
  }
  __syncthreads();
  if (warp() != 0) return -1;
  const Passing group = find_passing(groups, [&](int i) { return group_sums[i]; }, owner.before, target);
  return locate_in_group(slice, begin + group.part * 32, end, amount, group.before, target);
}

}  // namespace inflight::cuda::sampling
