#include "tests/kernels/harness.h"

namespace inflight::test {
namespace {

TEST(CopyKvBlocks, CopiesTheTokensAskedOfEveryLayer) {
  Random random;
  for (const DType dtype : kRealTypes) {
    std::vector<Tensor> pools;
    for (int i = 0; i < 6; ++i) pools.push_back(Tensor::random(dtype, {5, 3, 8, 40}, random));
    const std::vector<Tensor> before = pools;
    std::vector<KvCacheView> layers;
    for (int i = 0; i < 6; i += 2) layers.push_back({pools[i], pools[i + 1]});
    // The second copy reads what the first wrote.
    const std::vector<KvBlockCopy> copies = {{4, 1, 5}, {1, 0, 8}, {2, 2, 3}};
    ops().copy_kv_blocks(layers, {}, copies, context());
    for (int p = 0; p < 6; ++p)
      for (int64_t i = 0; i < pools[p].size(); ++i) {
        const int64_t block = i / (3 * 8 * 40), token = i / 40 % 8, rest = i % (3 * 8 * 40);
        const int64_t origin = block > 1 ? block : token < 5 ? 4 : 1;
        ASSERT_EQ(pools[p][i], before[p][origin * 3 * 8 * 40 + rest]) << "pool " << p << " element " << i;
      }
  }
}

TEST(CopyKvBlocks, GoesToTheHostsMemoryAndBack) {
  Random random;
  Tensor keys = Tensor::random(DType::kFloat32, {3, 2, 4, 5}, random);
  Tensor values = Tensor::random(DType::kFloat32, {3, 2, 4, 5}, random);
  Tensor host_keys = Tensor::random(DType::kFloat32, {7, 2, 4, 5}, random);
  Tensor host_values = Tensor::random(DType::kFloat32, {7, 2, 4, 5}, random);
  const Tensor before = keys, host_before = host_keys;
  const KvCacheView layer{keys, values}, host{host_keys, host_values};
  constexpr KvMemory kDevice = KvMemory::kDevice, kHost = KvMemory::kHost;
  // Block 1 moves out, block 6 of the host takes its place, and what moved out comes back in part.
  const std::vector<KvBlockCopy> copies = {{1, 5, 4, kDevice, kHost}, {6, 1, 4, kHost, kDevice}, {5, 0, 3, kHost}};
  ops().copy_kv_blocks({&layer, 1}, {&host, 1}, copies, context());
  for (int64_t i = 0; i < 2 * 4 * 5; ++i) {
    const int64_t block = 2 * 4 * 5;
    EXPECT_EQ(host_keys[5 * block + i], before[block + i]) << i;
    EXPECT_EQ(keys[block + i], host_before[6 * block + i]) << i;
    EXPECT_EQ(keys[i], i / 5 % 4 < 3 ? before[block + i] : before[i]) << i;
  }
  const KvBlockCopy outside{0, 7, 1, kDevice, kHost};
  EXPECT_EQ(
      error_of(ErrorCode::kInternal, [&] { ops().copy_kv_blocks({&layer, 1}, {&host, 1}, {&outside, 1}, context()); }),
      "copy_kv_blocks: block 0 to 7 is outside the host's cache of 7 blocks");
  EXPECT_EQ(error_of(ErrorCode::kInternal, [&] { ops().copy_kv_blocks({&layer, 1}, {}, {&outside, 1}, context()); }),
            "copy_kv_blocks: block 0 to 7 is outside the host's cache of 0 blocks");
}

TEST(CopyKvBlocks, RefusesBlocksOutsideTheCache) {
  const Tensor pool(DType::kFloat32, {5, 1, 4, 2});
  const KvCacheView layer{pool, pool};
  const auto copy = [&](KvBlockCopy what) { ops().copy_kv_blocks({&layer, 1}, {}, {&what, 1}, context()); };
  EXPECT_EQ(error_of(ErrorCode::kInternal, [&] { copy({1, 5, 1}); }),
            "copy_kv_blocks: block 1 to 5 is outside the cache of 5 blocks");
  EXPECT_EQ(error_of(ErrorCode::kInternal, [&] { copy({1, 2, 5}); }), "copy_kv_blocks: 5 tokens of a block of 4");
}

}  // namespace
}  // namespace inflight::test
