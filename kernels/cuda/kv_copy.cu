// Copies of one group never touch each other's blocks, so that a group is one launch for all its copies and layers;
// groups run one after the other.

#include <algorithm>
#include <vector>

#include "kernels/cuda/arguments.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/kv_copy_checks.h"

namespace inflight::cuda {
namespace {

constexpr int kThreads = 256;
constexpr size_t kMaxPools = 128;
constexpr size_t kMaxCopies = 64;

// By value in the launch, so that nothing is uploaded first. Sizes in units of the copy.
struct CopyGroup {
  void* pools[kMaxPools];       // each [N, H, P, D]
  void* host_pools[kMaxPools];  // page-locked; null without a host's cache
  KvBlockCopy copies[kMaxCopies];
  int64_t block_units;  // H · P · D
  int head_units;       // P · D
  int token_units;      // D
};

// To and from the host's memory the kernel reads and writes over the bus itself: one launch for all layers, in the
// stream's order.
template <typename Unit>
__global__ void __launch_bounds__(kThreads) copy_tokens(const __grid_constant__ CopyGroup group) {
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const KvBlockCopy& copy = group.copies[blockIdx.z];
  wait_and_let_next_start();
  if (unit >= group.block_units || unit % group.head_units >= copy.num_tokens * group.token_units) return;
  const auto pool = [&](KvMemory memory) {
    return static_cast<Unit*>(memory == KvMemory::kHost ? group.host_pools[blockIdx.y] : group.pools[blockIdx.y]) +
           unit;
  };
  pool(copy.to)[copy.destination * group.block_units] = pool(copy.from)[copy.source * group.block_units];
}

void check_layers(std::span<const KvCacheView> layers) {
  for (const KvCacheView& cache : layers) {
    Dim n("N"), h("H"), p("P"), d("D");
    Signature("copy_kv_blocks").cache(cache, {n, h, p, d});
  }
}

bool same_pools(const KvCacheView& a, const KvCacheView& b) {
  return a.keys.shape == b.keys.shape && a.keys.dtype == b.keys.dtype;
}

// How many of the first copies can run at once: none reads or writes a block that another of them writes.
size_t independent(std::span<const KvBlockCopy> copies) {
  size_t count = 0;
  const auto conflicts = [&](const KvBlockCopy& earlier) {
    const KvBlockCopy& copy = copies[count];
    const auto reads_what_it_writes = [](const KvBlockCopy& reader, const KvBlockCopy& writer) {
      return reader.source == writer.destination && reader.from == writer.to;
    };
    const bool same_place = copy.destination == earlier.destination && copy.to == earlier.to;
    return same_place || reads_what_it_writes(copy, earlier) || reads_what_it_writes(earlier, copy);
  };
  while (count < std::min(copies.size(), kMaxCopies) && std::none_of(&copies[0], &copies[count], conflicts)) ++count;
  return count;
}

template <typename Unit>
void launch_group(CopyGroup group, const KvCacheView& cache, size_t pools, size_t copies, CudaContext& context) {
  const auto units = [&](int64_t elements) {
    return elements * static_cast<int64_t>(size_of(cache.keys.dtype)) / static_cast<int64_t>(sizeof(Unit));
  };
  group.token_units = static_cast<int>(units(cache.head_size()));
  group.head_units = static_cast<int>(units(cache.head_size() * cache.block_size()));
  group.block_units = group.head_units * cache.num_kv_heads();
  const dim3 grid(static_cast<unsigned>(divide_up(group.block_units, kThreads)), static_cast<unsigned>(pools),
                  static_cast<unsigned>(copies));
  launch(copy_tokens<Unit>, grid, kThreads, 0, context, group);
}

// One launch: at most kMaxPools / 2 layers of equal pools, at most kMaxCopies copies.
void copy_group(std::span<const KvCacheView> layers, std::span<const KvCacheView> host_layers,
                std::span<const KvBlockCopy> copies, CudaContext& context) {
  CopyGroup group{};
  bool vectors = true;
  const size_t token_bytes = static_cast<size_t>(layers[0].head_size()) * size_of(layers[0].keys.dtype);
  const auto fill = [&](std::span<const KvCacheView> from, void** pools) {
    for (const KvCacheView& cache : from) {
      *pools++ = cache.keys.data;
      *pools++ = cache.values.data;
      vectors = vectors && allows_vectors(token_bytes, {cache.keys.data, cache.values.data});
    }
  };
  fill(layers, group.pools);
  fill(host_layers, group.host_pools);
  std::copy(copies.begin(), copies.end(), group.copies);
  const size_t pools = 2 * layers.size();
  if (vectors) return launch_group<uint4>(group, layers[0], pools, copies.size(), context);
  launch_group<uint16_t>(group, layers[0], pools, copies.size(), context);
}

}  // namespace

void copy_kv_blocks(std::span<const KvCacheView> layers, std::span<const KvCacheView> host_layers,
                    std::span<const KvBlockCopy> copies, DeviceContext& device) {
  check_layers(layers);
  check_layers(host_layers);
  check_kv_copies(layers, host_layers, copies);
  std::vector<KvBlockCopy> moves(copies.begin(), copies.end());
  std::erase_if(moves, [](const KvBlockCopy& copy) { return copy.source == copy.destination && copy.from == copy.to; });
  for (std::span<const KvBlockCopy> rest = moves; !rest.empty();) {
    const size_t group = independent(rest);
    for (size_t first = 0, end = 0; first < layers.size(); first = end) {
      for (end = first; end < layers.size() && end - first < kMaxPools / 2; ++end)
        if (!same_pools(layers[first], layers[end])) break;
      const std::span<const KvCacheView> host =
          host_layers.empty() ? host_layers : host_layers.subspan(first, end - first);
      copy_group(layers.subspan(first, end - first), host, rest.first(group), cuda_context(device));
    }
    rest = rest.subspan(group);
  }
}

}  // namespace inflight::cuda
