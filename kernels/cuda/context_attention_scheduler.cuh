#pragma once

#include "kernels/cuda/context_attention.cuh"
#include "kernels/cuda/context_attention_shape.cuh"

namespace inflight::cuda::context_attention_kernels {

// One warp that deals out the block's items: the first by the block's number, the rest to whichever block asks next.
// It asks only shortly before the copies run dry, since what a block holds ready no other can take.
template <typename S>
class Scheduler {
 public:
  __device__ Scheduler(const ContextAttentionParams& params, Shared<S>& shared)
      : params_(params), shared_(shared), lane_(threadIdx.x % 32), num_tiles_(*params.num_tiles) {}

  __device__ void run() {
    const unsigned num_items = num_tiles_ * params_.num_kv_heads;
    unsigned index = blockIdx.x;
    if (index >= num_items) fetch(num_items);
    int dealt_tiles = 0;
    for (; index < num_items; index = fetch(num_items)) {
      const Item item = item_at(index);
      touch_table(item);
      publish(item);
      dealt_tiles += item.end - item.begin;
      while (dealt_tiles - loaded_tiles() >= kTilesAhead) __nanosleep(100);
    }
    publish(Item{});
  }

 private:
  static constexpr int kTilesAhead = 4;

  __device__ int loaded_tiles() const {
    int tiles = 0;
    if (lane_ == 0) tiles = atomicAdd(&shared_.loaded_tiles, 0);
    return __shfl_sync(0xffffffffu, tiles, 0);
  }

  // Every block makes one call that finds nothing, and the last of these wraps the counter to 0.
  __device__ unsigned fetch(unsigned num_items) {
    unsigned item = 0;
    if (lane_ == 0) item = atomicInc(params_.next_item, max(num_items, gridDim.x) - 1);
    return gridDim.x + __shfl_sync(0xffffffffu, item, 0);
  }

  // One KV head's tiles after another's, so that the blocks at work share keys in the L2 cache.
  __device__ Item item_at(unsigned index) const {
    const int kv_head = index / num_tiles_;
    const ContextTile tile = params_.tiles[index - kv_head * num_tiles_];
    Item item{tile.first_row, tile.num_tokens, tile.first_position, kv_head, tile.sequence, 0, 0, 0};
    item.length = params_.context_lengths[tile.sequence];
    item.end = (tile.first_position + tile.num_tokens + S::kKeys - 1) / S::kKeys;
    // With sinks the tiles between them and the window are read, too, and masked.
    if (params_.window > 0 && params_.sinks == 0)
      item.begin = max(0, tile.first_position - params_.window + 1) / S::kKeys;
    return item;
  }

  // Brings the line of the table that the producer reads first into the cache.
  __device__ void touch_table(const Item& item) const {
    const int64_t page = (static_cast<int64_t>(item.begin) * S::kKeys) >> params_.page_shift;
    const int* entry = params_.block_tables + static_cast<int64_t>(item.sequence) * params_.table_width + page;
    int ignored;
    if (lane_ == 0 && item.has_keys()) asm volatile("ld.global.ca.b32 %0, [%1];" : "=r"(ignored) : "l"(entry));
  }

  __device__ void publish(const Item& item) {
    barrier_wait(&shared_.item_empty[slot_.stage()], slot_.parity() ^ 1);
    if (lane_ == 0) {
      shared_.items[slot_.stage()] = item;
      barrier_arrive(&shared_.item_full[slot_.stage()]);
    }
    slot_.advance();
  }

  const ContextAttentionParams& params_;
  Shared<S>& shared_;
  int lane_, num_tiles_;
  Ring<kItemSlots> slot_;
};

}  // namespace inflight::cuda::context_attention_kernels
