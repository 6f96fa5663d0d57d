#include <gtest/gtest.h>

#include <numeric>

#include "inflight_batcher/kv_cache/kv_cache_manager.h"

namespace inflight {
namespace {

/// Eight blocks of four tokens; every sequence has the same twelve tokens, some of them virtual.
class KvVirtualTokensTest : public testing::Test {
 protected:
  KvVirtualTokensTest() : tokens_(12) { std::iota(tokens_.begin(), tokens_.end(), 0); }

  /// How many tokens the sequence found; it leaves all its own behind.
  int run(const KvPolicy& given) {
    const auto policy = std::make_shared<KvPolicy>(given);
    KvCacheManager::Admission admission;
    EXPECT_TRUE(cache_.add_sequence(1, tokens_, 12, true, &admission, policy));
    EXPECT_EQ(cache_.count_reusable_blocks(tokens_, policy.get()), admission.reused_tokens / 4);
    cache_.mark_computed(1, tokens_);
    cache_.check_invariants();
    cache_.remove_sequence(1, true);
    cache_.check_invariants();
    return admission.reused_tokens;
  }

  static KvPolicy with_ids(std::vector<uint64_t> extra_ids) {
    KvPolicy policy;
    policy.extra_ids = std::move(extra_ids);
    return policy;
  }

  std::vector<TokenId> tokens_;
  KvCacheManager cache_{{.num_blocks = 8, .block_size = 4}};
};

TEST_F(KvVirtualTokensTest, TablesAreToldApart) {
  const KvPolicy first = with_ids({0, 0, 0, 0, 0, 7, 7}), second = with_ids({0, 0, 0, 0, 0, 8, 8});
  EXPECT_EQ(run(first), 0);
  EXPECT_EQ(run(second), 5);
  EXPECT_EQ(run(first), 11);
  EXPECT_EQ(run(second), 11);
}

TEST_F(KvVirtualTokensTest, IdsOfZeroAreNone) {
  EXPECT_EQ(run(with_ids({0, 0, 0, 0, 0, 7})), 0);
  EXPECT_EQ(run({}), 5);
  EXPECT_EQ(run(with_ids({0, 0, 0})), 11);
}

TEST_F(KvVirtualTokensTest, WhatCannotBeToldApartIsNotShared) {
  KvPolicy policy;
  policy.shareable_tokens = 6;
  EXPECT_EQ(run(policy), 0);
  EXPECT_EQ(run(policy), 6);
  EXPECT_EQ(run({}), 6);
}

}  // namespace
}  // namespace inflight
