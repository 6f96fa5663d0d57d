#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/generation_attention_schedule.cuh"
#include "kernels/cuda/launch.cuh"

/// The plan of a step: every block's share of the work, from the lengths that only the device knows.
namespace inflight::cuda {

inline constexpr int kPlanThreads = 512;

struct PlanParams {
  GenerationShape shape;
  const int32_t* block_tables;  // [num_sequences, table_width]
  int table_width, block_shift;
  int grid;            // blocks of the attention kernel
  PlanEntry* entries;  // [grid]
};

/// The whole of the work, `units` long, in equal shares of the leading blocks; those beyond `blocks` have none.
struct Shares {
  int units, blocks, quotient, remainder;

  __device__ Shares(int units, int grid) : units(units), blocks(min(units, grid)) {
    quotient = units / max(blocks, 1);
    remainder = units - quotient * blocks;
  }

  __device__ int first(int block) const { return block * quotient + min(block, remainder); }
  __device__ int owner(int unit) const {
    const int of_larger = remainder * (quotient + 1);
    return unit < of_larger ? unit / (quotient + 1) : remainder + (unit - of_larger) / quotient;
  }
};

/// The pair that a unit belongs to.
template <bool kInvariant>
struct UnitPlace {
  int sequence, head, index;  // unit `index` of the pair
  int pair_end;               // first unit of the next pair
  Extent<kInvariant> extent;

  /// `before` [num_sequences + 1]: units of one head in all earlier sequences.
  __device__ UnitPlace(const GenerationShape& shape, const int* before, int unit) {
    int low = 0, high = shape.num_sequences;  // before[low] <= unit / heads < before[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (before[middle] <= unit / shape.heads ? low : high) = middle;
    }
    sequence = low;
    extent = Extent<kInvariant>(shape, __ldcg(shape.context_lengths + sequence));
    const int of_sequence = unit - before[sequence] * shape.heads, units = before[sequence + 1] - before[sequence];
    head = of_sequence / units;
    index = of_sequence - head * units;
    pair_end = unit - index + units;
  }
};

template <bool kInvariant>
__device__ __forceinline__ PlanEntry entry_of(const PlanParams& p, const int* before, int block) {
  PlanEntry entry{};
  const Shares shares(before[p.shape.num_sequences] * p.shape.heads, p.grid);
  if (block >= shares.blocks) return entry;
  const UnitPlace<kInvariant> start(p.shape, before, shares.first(block));
  const UnitPlace<kInvariant> last(p.shape, before, shares.first(block + 1) - 1);
  entry.sequence = start.sequence;
  entry.head = start.head;
  entry.tile = start.extent.begin + start.index * start.extent.unit;
  entry.units_left = shares.first(block + 1) - shares.first(block);
  entry.first = start.extent.first;
  entry.length = start.extent.length;
  entry.unit = start.extent.unit;
  entry.sinks = start.extent.sinks;
  entry.sharers = shares.owner(last.pair_end - 1) - block + 1;
  for (int slice = 0; slice < static_cast<int>(kTileTokens) / 16; ++slice) {
    const int position = entry.tile * static_cast<int>(kTileTokens) + slice * 16;
    const bool visible = start.extent.any_of(position, 16);
    const int index = position >> p.block_shift;
    entry.blocks[slice] = visible && index < p.table_width
                              ? __ldcg(p.block_tables + static_cast<int64_t>(entry.sequence) * p.table_width + index)
                              : -1;
  }
  return entry;
}

/// The sum of the lanes up to and including this one.
__device__ __forceinline__ int scan_warp(int value) {
  const int lane = threadIdx.x % 32;
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(kAllLanes, value, step);
    if (lane >= step) value += other;
  }
  return value;
}

/// Fills before[1 .. num_sequences]; returns whether there are padding sequences. For the whole block.
template <bool kInvariant>
__device__ bool count_units(const GenerationShape& shape, int* before) {
  __shared__ int warp_sums[kPlanThreads / 32];
  int running = 0;
  bool padding = false;
  if (threadIdx.x == 0) before[0] = 0;
  for (int first = 0; first < shape.num_sequences; first += kPlanThreads) {
    const int s = first + static_cast<int>(threadIdx.x);
    const int length = s < shape.num_sequences ? __ldcg(shape.context_lengths + s) : 1;
    padding |= length <= 0;
    const int upto = scan_warp(s < shape.num_sequences ? Extent<kInvariant>(shape, length).units() : 0);
    if (threadIdx.x % 32 == 31) warp_sums[threadIdx.x / 32] = upto;
    __syncthreads();
    int earlier = running;
    for (int w = 0; w < kPlanThreads / 32; ++w) {
      if (w < static_cast<int>(threadIdx.x) / 32) earlier += warp_sums[w];
      running += warp_sums[w];
    }
    if (s < shape.num_sequences) before[s + 1] = earlier + upto;
    __syncthreads();
  }
  return __syncthreads_or(padding);
}

/// One block; shared memory of (num_sequences + 1) · 4 bytes.
template <bool kInvariant>
__global__ void __launch_bounds__(kPlanThreads) generation_plan_kernel(const __grid_constant__ PlanParams p) {
  extern __shared__ int before[];  // [num_sequences + 1]
  wait_for_previous();
  const bool padding = count_units<kInvariant>(p.shape, before);
  for (int block = threadIdx.x; block < p.grid; block += kPlanThreads) {
    PlanEntry entry = entry_of<kInvariant>(p, before, block);
    entry.padding = padding;
    p.entries[block] = entry;
  }
  // Attention reads its entry before it waits for the kernel before it: nothing may start until all are in memory.
  __threadfence();
  __syncthreads();
  let_next_start();
}

}  // namespace inflight::cuda
