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
    ops().copy_kv_blocks(layers, copies, context());
    for (int p = 0; p < 6; ++p)
      for (int64_t i = 0; i < pools[p].size(); ++i) {
        const int64_t block = i / (3 * 8 * 40), token = i / 40 % 8, rest = i % (3 * 8 * 40);
        const int64_t origin = block > 1 ? block : token < 5 ? 4 : 1;
        ASSERT_EQ(pools[p][i], before[p][origin * 3 * 8 * 40 + rest]) << "pool " << p << " element " << i;
      }
  }
}

TEST(CopyKvBlocks, RefusesBlocksOutsideTheCache) {
  const Tensor pool(DType::kFloat32, {5, 1, 4, 2});
  const KvCacheView layer{pool, pool};
  const auto copy = [&](KvBlockCopy what) { ops().copy_kv_blocks({&layer, 1}, {&what, 1}, context()); };
  EXPECT_EQ(error_of(ErrorCode::kInternal, [&] { copy({1, 5, 1}); }),
            "copy_kv_blocks: block 1 to 5 is outside the cache of 5 blocks");
  EXPECT_EQ(error_of(ErrorCode::kInternal, [&] { copy({1, 2, 5}); }), "copy_kv_blocks: 5 tokens of a block of 4");
}

}  // namespace
}  // namespace inflight::test
