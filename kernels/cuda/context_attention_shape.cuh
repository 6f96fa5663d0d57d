#pragma once

#include "kernels/cuda/wgmma.cuh"

/// What the roles of a context attention block share.
namespace inflight::cuda::context_attention_kernels {

constexpr int kPanelColumns = 64;
constexpr int kPanelRowBytes = 128;
constexpr int kItemSlots = 4;

// The sizes of one kernel: head size, multiplying warpgroups, keys of a tile, registers of each multiplying thread.
template <int kHeadSize_, int kWarpgroups_, int kKeys_, int kConsumerRegisters_>
struct Shape {
  static constexpr int kHeadSize = kHeadSize_;
  static constexpr int kWarpgroups = kWarpgroups_;              // that multiply
  static constexpr int kKeys = kKeys_;                          // of a tile
  static constexpr int kShortKeys = kKeys == 128 ? 64 : kKeys;  // of a last tile whose rest no row sees
  static constexpr int kStages = 2;
  static constexpr int kQueryStages = kHeadSize_ <= 128 ? 2 : 1;  // as many as fit
  static constexpr int kConsumerRegisters = kConsumerRegisters_;
  static constexpr int kProducerRegisters = kWarpgroups == 2 ? 504 - 2 * kConsumerRegisters : 32;  // what is left
  static constexpr int kRows = 64 * kWarpgroups;
  static constexpr int kPanels = (kHeadSize + kPanelColumns - 1) / kPanelColumns;
  static constexpr int kPanelBytes = kKeys * kPanelRowBytes;
  static constexpr int kTileBytes = kPanels * kPanelBytes;
  static constexpr int kQueryPanelBytes = kRows * kPanelRowBytes;
  static constexpr int kThreads = 128 * (kWarpgroups + 1);
  static constexpr int kOutParts = kHeadSize > 128 ? 2 : 1;  // column ranges of the output, a product each
  static constexpr int kOutColumns = kHeadSize / kOutParts;
  static_assert(kHeadSize % 16 == 0 && kKeys % 16 == 0 && kPanelBytes % 1024 == 0);
};

// What a block works on: a tile of queries under one KV head. num_tokens 0: nothing more comes.
struct Item {
  int first_row, num_tokens, first_position, kv_head;
  int sequence, length;  // of its context
  int begin, end;        // tiles of keys

  __device__ __forceinline__ bool has_keys() const { return begin < end; }
};

template <typename S>
struct Shared {
  alignas(1024) unsigned char query[S::kQueryStages][S::kPanels * S::kQueryPanelBytes];
  alignas(1024) unsigned char keys[S::kStages][S::kTileBytes];
  alignas(1024) unsigned char values[S::kStages][S::kTileBytes];
  uint64_t tail_full;
  uint64_t query_full[S::kQueryStages], query_empty[S::kQueryStages];
  uint64_t keys_full[S::kStages], keys_empty[S::kStages];
  uint64_t values_full[S::kStages], values_empty[S::kStages];
  uint64_t item_full[kItemSlots], item_empty[kItemSlots];
  Item items[kItemSlots];
  int loaded_tiles;  // asked for so far
};

template <typename S>
__device__ void init_barriers(Shared<S>& shared) {
  constexpr int kWarps = 4 * S::kWarpgroups;
  barrier_init(&shared.tail_full, 1);
  for (int i = 0; i < S::kQueryStages; ++i) {
    barrier_init(&shared.query_full[i], 1);
    barrier_init(&shared.query_empty[i], kWarps);
  }
  for (int i = 0; i < S::kStages; ++i) {
    barrier_init(&shared.keys_full[i], 1);
    barrier_init(&shared.keys_empty[i], kWarps);
    barrier_init(&shared.values_full[i], 1);
    barrier_init(&shared.values_empty[i], kWarps);
  }
  for (int i = 0; i < kItemSlots; ++i) {
    barrier_init(&shared.item_full[i], 1);
    barrier_init(&shared.item_empty[i], 32 * (kWarps + 1));  // every thread that reads it, the producer's too
  }
  shared.loaded_tiles = 0;
  barrier_init_fence();
}

}  // namespace inflight::cuda::context_attention_kernels
