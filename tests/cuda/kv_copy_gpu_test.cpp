#include <cstring>

#include "inflight_batcher/engine/cuda_memory.h"
#include "kernels/cuda/ops.h"
#include "tests/cuda/gpu_harness.h"

namespace inflight::test {
namespace {

class KvCopyGpu : public GpuTest {};

constexpr int kBlocks = 90, kHeads = 3, kBlockSize = 8;

// The same copies by the CPU's kernel and by the GPU's, bit for bit.
void compare(DType dtype, int head_size, int num_layers, const std::vector<KvBlockCopy>& copies, Random& random) {
  std::vector<Tensor> pools;
  std::vector<std::unique_ptr<GpuTensor>> gpu_pools;
  for (int i = 0; i < 2 * num_layers; ++i) {
    pools.push_back(Tensor::random(dtype, {kBlocks, kHeads, kBlockSize, head_size}, random));
    gpu_pools.push_back(std::make_unique<GpuTensor>(pools.back()));
  }
  std::vector<KvCacheView> layers, gpu_layers;
  for (int i = 0; i < 2 * num_layers; i += 2) {
    layers.push_back({pools[i], pools[i + 1]});
    gpu_layers.push_back({*gpu_pools[i], *gpu_pools[i + 1]});
  }
  ops().copy_kv_blocks(layers, {}, copies, context());
  cuda::copy_kv_blocks(gpu_layers, {}, copies, gpu());
  for (int i = 0; i < 2 * num_layers; ++i) EXPECT_EQ(gpu_pools[i]->host().bits(), pools[i].bits()) << "pool " << i;
}

TEST_F(KvCopyGpu, CopiesTheTokensAskedOfEveryLayer) {
  Random random;
  for (const int head_size : {5, 40, 128}) compare(DType::kBfloat16, head_size, 3, {{4, 1, 5}, {7, 2, 8}}, random);
  compare(DType::kFloat32, 40, 2, {{4, 1, 5}, {7, 2, 0}}, random);
}

TEST_F(KvCopyGpu, KeepsTheOrderOfDependentCopies) {
  Random random;
  // Reads what was written, writes what was read, writes what was written, and one block to itself.
  compare(DType::kBfloat16, 64, 2, {{4, 1, 5}, {1, 0, 8}, {3, 4, 8}, {9, 0, 2}, {2, 2, 3}}, random);
  std::vector<KvBlockCopy> chain;
  for (int i = 0; i < 30; ++i)
    chain.push_back({random.integer(0, 5), random.integer(0, 5), random.integer(0, kBlockSize)});
  compare(DType::kBfloat16, 64, 2, chain, random);
}

TEST_F(KvCopyGpu, TakesMoreCopiesAndLayersThanALaunchHolds) {
  Random random;
  const std::vector<int32_t> blocks = random.permutation(kBlocks);
  std::vector<KvBlockCopy> copies;
  for (int i = 0; i < 80; ++i) copies.push_back({blocks[i % 9], blocks[9 + i], random.integer(1, kBlockSize)});
  compare(DType::kBfloat16, 16, 70, copies, random);
}

TEST_F(KvCopyGpu, GoesToTheHostsMemoryAndBack) {
  Random random;
  constexpr int kHostBlocks = 200, kLayers = 3;
  const auto pool = [&](int blocks) {
    return Tensor::random(DType::kBfloat16, {blocks, kHeads, kBlockSize, 40}, random);
  };
  std::vector<Tensor> pools, host_pools;
  std::vector<std::unique_ptr<GpuTensor>> gpu_pools;
  std::vector<PinnedMemory> pinned;
  for (int i = 0; i < 2 * kLayers; ++i) {
    pools.push_back(pool(kBlocks));
    gpu_pools.push_back(std::make_unique<GpuTensor>(pools.back()));
    host_pools.push_back(pool(kHostBlocks));
    const TensorView view = host_pools.back();
    pinned.emplace_back(view.bytes());
    std::memcpy(pinned.back().data(), view.data, view.bytes());
  }
  std::vector<KvCacheView> layers, gpu_layers, host_layers, pinned_layers;
  for (int i = 0; i < 2 * kLayers; i += 2) {
    layers.push_back({pools[i], pools[i + 1]});
    gpu_layers.push_back({*gpu_pools[i], *gpu_pools[i + 1]});
    host_layers.push_back({host_pools[i], host_pools[i + 1]});
    pinned_layers.push_back(host_layers.back());
    pinned_layers.back().keys.data = pinned[i].data();
    pinned_layers.back().values.data = pinned[i + 1].data();
  }
  std::vector<KvBlockCopy> copies;
  for (int i = 0; i < 150; ++i) {  // few blocks, so that many copies depend on others
    const auto memory = [&] { return random.integer(0, 1) ? KvMemory::kHost : KvMemory::kDevice; };
    copies.push_back({random.integer(0, 11), random.integer(0, 11), random.integer(0, kBlockSize), memory(), memory()});
  }
  copies.push_back({kBlocks - 1, kHostBlocks - 1, kBlockSize, KvMemory::kDevice, KvMemory::kHost});
  ops().copy_kv_blocks(layers, host_layers, copies, context());
  cuda::copy_kv_blocks(gpu_layers, pinned_layers, copies, gpu());
  gpu().synchronize();
  for (int i = 0; i < 2 * kLayers; ++i) {
    EXPECT_EQ(gpu_pools[i]->host().bits(), pools[i].bits()) << "pool " << i;
    const TensorView view = host_pools[i];
    EXPECT_EQ(std::memcmp(pinned[i].data(), view.data, view.bytes()), 0) << "host pool " << i;
  }
}

TEST_F(KvCopyGpu, RefusesBlocksOutsideTheCache) {
  const GpuTensor pool(DType::kBfloat16, {5, 1, 4, 2});
  const KvCacheView layer{pool, pool};
  const auto copy = [&](KvBlockCopy what) { cuda::copy_kv_blocks({&layer, 1}, {}, {&what, 1}, gpu()); };
  EXPECT_EQ(error_of(ErrorCode::kInternal, [&] { copy({1, 5, 1}); }),
            "copy_kv_blocks: block 1 to 5 is outside the cache of 5 blocks");
  EXPECT_EQ(error_of(ErrorCode::kInternal, [&] { copy({1, 2, 5}); }), "copy_kv_blocks: 5 tokens of a block of 4");
}

}  // namespace
}  // namespace inflight::test
