#pragma once

#include <span>

#include "inflight/error.h"
#include "inflight/op_table.h"

namespace inflight {

/// What copy_kv_blocks asks of its copies on every device.
inline void check_kv_copies(std::span<const KvCacheView> layers, std::span<const KvCacheView> host_layers,
                            std::span<const KvBlockCopy> copies) {
  const auto blocks_of = [&](KvMemory memory, size_t layer) -> int64_t {
    if (memory == KvMemory::kDevice) return layers[layer].num_blocks();
    return layer < host_layers.size() ? host_layers[layer].num_blocks() : 0;
  };
  const auto check_block = [&](const KvBlockCopy& copy, int block, KvMemory memory, size_t layer) {
    const int64_t blocks = blocks_of(memory, layer);
    check(block >= 0 && block < blocks, ErrorCode::kInternal, "copy_kv_blocks: block ", copy.source, " to ",
          copy.destination, " is outside the ", memory == KvMemory::kHost ? "host's " : "", "cache of ", blocks,
          " blocks");
  };
  for (size_t layer = 0; layer < layers.size(); ++layer)
    for (const KvBlockCopy& copy : copies) {
      check_block(copy, copy.source, copy.from, layer);
      check_block(copy, copy.destination, copy.to, layer);
      check(copy.num_tokens >= 0 && copy.num_tokens <= layers[layer].block_size(), ErrorCode::kInternal,
            "copy_kv_blocks: ", copy.num_tokens, " tokens of a block of ", layers[layer].block_size());
    }
  for (size_t layer = 0; layer < std::min(layers.size(), host_layers.size()); ++layer) {
    const TensorView &here = layers[layer].keys, &host = host_layers[layer].keys;
    check(host.dtype == here.dtype && host.shape[1] == here.shape[1] && host.shape[2] == here.shape[2] &&
              host.shape[3] == here.shape[3],
          ErrorCode::kInvalidArgument, "copy_kv_blocks: the host's cache is ", describe(host), ", the device's ",
          describe(here));
  }
}

}  // namespace inflight
