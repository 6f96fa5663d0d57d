#pragma once

#include <cuda.h>

#include <cstdint>

#include "inflight/batch.h"
#include "kernels/cuda/cuda.h"

/// What the host side of context attention and its kernels share.
namespace inflight::cuda {

/// Neighbouring queries of one sequence. With the G query heads of a KV head they are the rows of one block's work.
/// A padding sequence's begin at position -num_tokens, before every key.
struct ContextTile {
  int sequence;
  int first_row;  // of q and out
  int num_tokens;
  int first_position;
};

/// The tiles of a step, costliest first, with room for the largest step the context allows.
class ContextPlan {
 public:
  explicit ContextPlan(CudaContext& context);

  /// Forgets the step: the next call of make() lays out anew.
  void forget() { tile_tokens_ = 0; }
  /// Enqueues the layout of sequences [num_generation, S) in tiles of `tile_tokens`, unless the step has it already.
  void make(const BatchView& batch, int tile_tokens, CudaContext& context);

  const ContextTile* tiles() const { return tiles_.as<ContextTile>(); }
  const int* num_tiles() const { return counters_.as<int>(); }
  unsigned* next_item() const { return counters_.as<unsigned>() + 1; }

 private:
  DeviceMemory tiles_;     // [max_num_tokens + max_batch_size] ContextTile
  DeviceMemory starts_;    // [max_batch_size + 1] int32: tiles before each sequence's
  DeviceMemory counters_;  // number of tiles, next item
  int tile_tokens_ = 0;
};

struct ContextAttentionParams {
  void* out;                   // [T, Hq * D] bfloat16
  const int* context_lengths;  // [S]
  const int* block_tables;     // [S, B]
  const float* alibi_slopes;   // [Hq] or null
  const ContextTile* tiles;
  const int* num_tiles;
  unsigned* next_item;  // 0 before and after a launch
  int table_width;      // B
  int num_heads;        // Hq
  int num_kv_heads;     // Hkv
  int group;            // G = Hq / Hkv
  int tile_tokens;      // of a full tile
  int page_shift;       // log2 P
  int box_keys;         // keys that one copy brings
  int cache_rows;       // N * Hkv * P: the first row outside the cache
  int window;
  int sinks;       // with a window: keys [0, sinks) are visible all the same
  float scale;     // of q * k; in powers of two (times log2 e) unless soft cap or slopes follow
  float soft_cap;  // 0: none
};

struct ContextMaps {
  CUtensorMap q;             // [T, Hq, D] in boxes of [tile_tokens, G, 64]
  CUtensorMap keys, values;  // [N * Hkv * P, D] in boxes of [box_keys, 64]
};

/// Launches `num_blocks` blocks, at most one an SM, which share out the plan's items.
using ContextLauncher = void (*)(const ContextMaps&, const ContextAttentionParams&, int num_blocks, CudaContext&);

struct ContextKernel {
  int rows_per_tile;  // queries times G: G must not exceed it
  int keys_per_tile;
  ContextLauncher launch;
};

/// The kernels of one head size, defined in a file each: plain, and with soft cap or ALiBi. Both take keys in tiles of
/// the same size, on which a row's bits depend.
struct ContextKernels {
  int head_size;
  ContextKernel plain, biased;
};
const ContextKernels& context_kernels_64();
const ContextKernels& context_kernels_80();
const ContextKernels& context_kernels_96();
const ContextKernels& context_kernels_128();
const ContextKernels& context_kernels_256();

}  // namespace inflight::cuda
