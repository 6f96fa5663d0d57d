#pragma once

#include "kernels/cuda/context_attention.cuh"
#include "kernels/cuda/context_attention_shape.cuh"

namespace inflight::cuda::context_attention_kernels {

// One warp that copies the items' queries, keys and values in.
template <typename S>
class Producer {
 public:
  __device__ Producer(const CUtensorMap& q, const CUtensorMap& keys, const CUtensorMap& values,
                      const ContextAttentionParams& params, Shared<S>& shared)
      : q_(q), keys_(keys), values_(values), params_(params), shared_(shared), lane_(threadIdx.x % 32) {}

  __device__ void run() {
    for (;;) {
      barrier_wait(&shared_.item_full[slot_.stage()], slot_.parity());
      const Item item = shared_.items[slot_.stage()];
      barrier_arrive(&shared_.item_empty[slot_.stage()]);
      slot_.advance();
      if (item.num_tokens == 0) return;
      if (item.has_keys()) load(item);
    }
  }

 private:
  __device__ void load(const Item& item) {
    table_ = params_.block_tables + static_cast<int64_t>(item.sequence) * params_.table_width;
    length_ = item.length;
    kv_head_ = item.kv_head;
    int row = cache_row(item.begin), next_row = cache_row(item.begin + 1);
    load_keys(row);
    load_query(item);
#pragma unroll 1
    for (int tile = item.begin + 1; tile < item.end; ++tile) {
      const int row_after = cache_row(tile + 1);  // before the waits, which hide its latency
      load_keys(next_row);
      load_values(row, S::kKeys);
      row = next_row;
      next_row = row_after;
    }
    load_values(row, length_ - (item.end - 1) * S::kKeys);
  }

  // The row of the cache where this lane's box of a tile begins. Past the sequence's end a row outside the cache, which
  // reads as zeros, and no block of the table that might not exist.
  __device__ int cache_row(int tile) const {
    const int key = tile * S::kKeys + lane_ * params_.box_keys;
    if (lane_ * params_.box_keys >= S::kKeys || key >= length_) return params_.cache_rows;
    const int page = table_[key >> params_.page_shift], in_page = key & ((1 << params_.page_shift) - 1);
    return ((page * params_.num_kv_heads + kv_head_) << params_.page_shift) + in_page;
  }

  __device__ void load_query(const Item& item) {
    const int bytes = params_.tile_tokens * params_.group * kPanelRowBytes * S::kPanels;
    const int stage = query_ring_.stage();
    barrier_wait(&shared_.query_empty[stage], query_ring_.parity() ^ 1);
    query_ring_.advance();
    if (lane_ != 0) return;
    barrier_expect(&shared_.query_full[stage], bytes);
    for (int panel = 0; panel < S::kPanels; ++panel)
      copy_box(shared_.query[stage] + panel * S::kQueryPanelBytes, q_, &shared_.query_full[stage],
               panel * kPanelColumns, item.kv_head * params_.group, item.first_row);
  }

  __device__ void load_keys(int row) {
    barrier_wait(&shared_.keys_empty[key_ring_.stage()], key_ring_.parity() ^ 1);
    load_tile(keys_, shared_.keys[key_ring_.stage()], &shared_.keys_full[key_ring_.stage()], row);
    key_ring_.advance();
    if (lane_ == 0) atomicAdd(&shared_.loaded_tiles, 1);
  }

  // The tile's first `valid` keys belong to the sequence. What the cache holds after them may be anything, NaN too,
  // and a weight of zero does not silence that: it is overwritten before the consumers see the tile.
  __device__ void load_values(int row, int valid) {
    const int stage = value_ring_.stage();
    barrier_wait(&shared_.values_empty[stage], value_ring_.parity() ^ 1);
    value_ring_.advance();
    if (valid >= S::kKeys) return load_tile(values_, shared_.values[stage], &shared_.values_full[stage], row);
    load_tile(values_, shared_.values[stage], &shared_.tail_full, row);
    barrier_wait(&shared_.tail_full, tail_parity_);
    tail_parity_ ^= 1;
    const int units = (S::kKeys - valid) * (kPanelRowBytes / 16);
    for (int panel = 0; panel < S::kPanels; ++panel) {
      auto* rows = reinterpret_cast<uint4*>(shared_.values[stage] + panel * S::kPanelBytes + valid * kPanelRowBytes);
      for (int i = lane_; i < units; i += 32) rows[i] = make_uint4(0, 0, 0, 0);
    }
    async_proxy_fence();
    __syncwarp();
    if (lane_ == 0) barrier_arrive(&shared_.values_full[stage]);
  }

  __device__ void load_tile(const CUtensorMap& map, unsigned char* to, uint64_t* full, int row) {
    if (lane_ == 0) barrier_expect(full, S::kTileBytes);
    __syncwarp();
    if (lane_ * params_.box_keys >= S::kKeys) return;
    to += lane_ * params_.box_keys * kPanelRowBytes;
#pragma unroll
    for (int panel = 0; panel < S::kPanels; ++panel)
      copy_box(to + panel * S::kPanelBytes, map, full, panel * kPanelColumns, row);
  }

  const CUtensorMap &q_, &keys_, &values_;
  const ContextAttentionParams& params_;
  Shared<S>& shared_;
  int lane_;
  const int* table_ = nullptr;
  int length_ = 0, kv_head_ = 0;
  Ring<kItemSlots> slot_;
  Ring<S::kStages> key_ring_, value_ring_;
  Ring<S::kQueryStages> query_ring_;
  uint32_t tail_parity_ = 0;
};

}  // namespace inflight::cuda::context_attention_kernels
