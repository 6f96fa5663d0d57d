// A block's heads are apart in memory ([N, H, P, D]); the copied tokens of each head are contiguous.

#include <cstring>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/signature.h"
#include "kernels/cpu/work.h"

namespace inflight::cpu {
namespace {

void check_copy(const KvCacheView& cache, const KvBlockCopy& copy) {
  const auto known = [&](int block) { return block >= 0 && block < cache.num_blocks(); };
  check(known(copy.source) && known(copy.destination), ErrorCode::kInternal, "copy_kv_blocks: block ", copy.source,
        " to ", copy.destination, " is outside the cache of ", cache.num_blocks(), " blocks");
  check(copy.num_tokens >= 0 && copy.num_tokens <= cache.block_size(), ErrorCode::kInternal,
        "copy_kv_blocks: ", copy.num_tokens, " tokens of a block of ", cache.block_size());
}

void copy_tokens(const TensorView& pool, const KvBlockCopy& copy) {
  const size_t token_bytes = static_cast<size_t>(pool.shape[3]) * size_of(pool.dtype);
  const size_t head_bytes = static_cast<size_t>(pool.shape[2]) * token_bytes;
  const size_t block_bytes = static_cast<size_t>(pool.shape[1]) * head_bytes;
  for (int64_t head = 0; head < pool.shape[1]; ++head) {
    auto* at = pool.as<std::byte>() + head * head_bytes;
    std::memmove(at + copy.destination * block_bytes, at + copy.source * block_bytes, copy.num_tokens * token_bytes);
  }
}

}  // namespace

void copy_kv_blocks(std::span<const KvCacheView> layers, std::span<const KvBlockCopy> copies, DeviceContext& context) {
  for (const KvCacheView& cache : layers) {
    Dim n("N"), h("H"), p("P"), d("D");
    Signature("copy_kv_blocks").cache(cache, {n, h, p, d});
    for (const KvBlockCopy& copy : copies) check_copy(cache, copy);
  }
  if (layers.empty() || copies.empty()) return;
  // Copies of one layer keep their order: a later one may read what an earlier one wrote.
  const int64_t elements = layers[0].keys.elements() / std::max<int64_t>(1, layers[0].num_blocks());
  parallel_items(context, layers.size(), 2 * elements * copies.size(), [&](int64_t begin, int64_t end) {
    for (int64_t layer = begin; layer < end; ++layer)
      for (const KvBlockCopy& copy : copies) {
        copy_tokens(layers[layer].keys, copy);
        copy_tokens(layers[layer].values, copy);
      }
  });
}

}  // namespace inflight::cpu
