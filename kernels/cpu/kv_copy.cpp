// A block's heads are apart in memory ([N, H, P, D]); the copied tokens of each head are contiguous.

#include <cstring>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/signature.h"
#include "kernels/cpu/work.h"
#include "kernels/kv_copy_checks.h"

namespace inflight::cpu {
namespace {

void copy_tokens(const TensorView& from, const TensorView& to, const KvBlockCopy& copy) {
  const size_t token_bytes = static_cast<size_t>(from.shape[3]) * size_of(from.dtype);
  const size_t head_bytes = static_cast<size_t>(from.shape[2]) * token_bytes;
  const size_t block_bytes = static_cast<size_t>(from.shape[1]) * head_bytes;
  const auto* source = from.as<std::byte>() + copy.source * block_bytes;
  auto* destination = to.as<std::byte>() + copy.destination * block_bytes;
  for (int64_t head = 0; head < from.shape[1]; ++head)
    std::memmove(destination + head * head_bytes, source + head * head_bytes, copy.num_tokens * token_bytes);
}

}  // namespace

void copy_kv_blocks(std::span<const KvCacheView> layers, std::span<const KvCacheView> host_layers,
                    std::span<const KvBlockCopy> copies, DeviceContext& context) {
  for (const KvCacheView& cache : layers) {
    Dim n("N"), h("H"), p("P"), d("D");
    Signature("copy_kv_blocks").cache(cache, {n, h, p, d});
  }
  check_kv_copies(layers, host_layers, copies);
  if (layers.empty() || copies.empty()) return;
  // Copies of one layer keep their order: a later one may read what an earlier one wrote.
  const int64_t elements = layers[0].keys.elements() / std::max<int64_t>(1, layers[0].num_blocks());
  parallel_items(context, layers.size(), 2 * elements * copies.size(), [&](int64_t begin, int64_t end) {
    for (int64_t layer = begin; layer < end; ++layer)
      for (const KvBlockCopy& copy : copies) {
        const KvCacheView& from = copy.from == KvMemory::kHost ? host_layers[layer] : layers[layer];
        const KvCacheView& to = copy.to == KvMemory::kHost ? host_layers[layer] : layers[layer];
        copy_tokens(from.keys, to.keys, copy);
        copy_tokens(from.values, to.values, copy);
      }
  });
}

}  // namespace inflight::cpu
