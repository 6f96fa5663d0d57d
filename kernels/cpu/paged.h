#pragma once

#include "inflight/batch.h"

namespace inflight::cpu {

/// Finds a token's vector in one pool ([N, H, P, D]) through the sequence's block table.
template <typename T>
struct PagedHead {
  const KvCacheView& cache;
  T* pool;               // keys or values
  const int32_t* table;  // [B] blocks of the sequence
  int64_t table_size;    // B
  int64_t head;

  /// The vector of the token at `position`; its neighbours up to the block's end follow it in memory.
  T* at(int64_t position) const {
    const int64_t size = cache.block_size();
    const int64_t index = position / size;
    check(index < table_size, ErrorCode::kInternal, "KV position ", position, " is past the block table of ",
          table_size, " blocks of ", size, " tokens");
    const int64_t block = table[index];
    check(block >= 0 && block < cache.num_blocks(), ErrorCode::kInternal, "KV block ", block, " of position ", position,
          " is outside the cache of ", cache.num_blocks(), " blocks");
    return pool + ((block * cache.num_kv_heads() + head) * size + position % size) * cache.head_size();
  }
};

}  // namespace inflight::cpu
