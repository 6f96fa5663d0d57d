#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/sampling.h"

/// A block's shared memory while it samples. It has one fixed place, so that functions need no pointer to it: the long
/// ones are not inlined, since most of the code runs once a launch and costs what it takes of the instruction cache.
namespace inflight::cuda::sampling {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxBlocks = 8;  // of a row: the largest cluster that every GPU with clusters can place

constexpr int kGroupLanes = 16;  // threads whose best tokens are compared as one
constexpr int kGroups = kThreads / kGroupLanes;
constexpr int kBins = 1024;              // of a histogram
constexpr int kListSize = 512;           // candidates that are compared each with each
constexpr int kCountWindow = 2048;       // tokens whose occurrences are counted at a time
constexpr int kMaxChunkGroups = 64;      // of 32 chunks of a warp: shared memory holds no more
constexpr size_t kLogitsOffset = 11264;  // bytes

struct TeamMemory {
  static constexpr int kPartBytes = 16;

  alignas(16) unsigned char warp_parts[kWarps][kPartBytes];
  alignas(16) unsigned char block_parts[2][kMaxBlocks][kPartBytes];
  int next;  // of block_parts: a slow block may still read what the exchange before brought
};

struct SearchMemory {
  union {
    uint32_t histogram[kBins];  // this block's
    uint64_t found[kListSize];  // what this block gathered
    double weights[kListSize];  // of the list
  };
  union {
    alignas(16) uint32_t totals[kBins];  // the histogram of all blocks
    uint64_t list[kListSize];            // of the leading block: what all gathered
  };
};

struct Shared {
  TeamMemory team;
  GpuSamplingRow row;
  alignas(16) uint32_t group_bests[kGroups * kMaxBlocks];  // keys, of all blocks
  uint32_t warp_words[kWarps];
  double warp_sums[2][kWarps];
  double chunk_group_sums[kMaxChunkGroups];
  uint32_t first, last;  // of what is searched
  uint32_t found_count;
  union {
    SearchMemory search;
    uint32_t counts[kCountWindow];  // of the penalties
  };
};
static_assert(sizeof(Shared) <= kLogitsOffset && kLogitsOffset % 16 == 0);

extern __shared__ __align__(16) unsigned char sampling_memory[];

__device__ __forceinline__ Shared& shared() { return *reinterpret_cast<Shared*>(sampling_memory); }
__device__ __forceinline__ float4* shared_chunks() {
  return reinterpret_cast<float4*>(sampling_memory + kLogitsOffset);
}
__device__ __forceinline__ float* shared_logits() { return reinterpret_cast<float*>(sampling_memory + kLogitsOffset); }

}  // namespace inflight::cuda::sampling
