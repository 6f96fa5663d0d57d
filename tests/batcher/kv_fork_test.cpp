#include <gtest/gtest.h>

#include <numeric>

#include "inflight_batcher/kv_cache/kv_cache_manager.h"

namespace inflight {
namespace {

using Tokens = std::vector<TokenId>;

Tokens iota(int count, TokenId first = 0) {
  Tokens tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

Tokens operator+(Tokens tokens, const Tokens& more) {
  tokens.insert(tokens.end(), more.begin(), more.end());
  return tokens;
}

/// Blocks of 4 tokens; sequence 1 has computed 10 of them.
class KvForkTest : public testing::Test {
 protected:
  void SetUp() override { start({.num_blocks = 8, .block_size = 4}); }
  void TearDown() override { cache_->check_invariants(); }

  void start(const KvCacheManager::Config& config) {
    cache_ = std::make_unique<KvCacheManager>(config);
    KvCacheManager::Admission admission;
    ASSERT_TRUE(cache_->add_sequence(1, tokens_, 10, true, &admission));
    cache_->mark_computed(1, tokens_);
  }

  Tokens table(SequenceId id) const {
    const auto blocks = cache_->block_table(id);
    return {blocks.begin(), blocks.end()};
  }

  int found(const Tokens& tokens) {
    KvCacheManager::Admission admission;
    EXPECT_TRUE(cache_->add_sequence(1000, tokens + Tokens{-1}, static_cast<int>(tokens.size()), true, &admission));
    cache_->remove_sequence(1000, true);
    return admission.reused_tokens;
  }

  const std::vector<KvBlockCopy>& copies() {
    copies_.clear();
    cache_->take_copies(copies_);
    return copies_;
  }

  int used() const { return cache_->stats().used_blocks; }

  const Tokens tokens_ = iota(10);
  std::unique_ptr<KvCacheManager> cache_;
  std::vector<KvBlockCopy> copies_;
};

TEST_F(KvForkTest, SharesWholeBlocksAndCopiesTheRest) {
  ASSERT_TRUE(cache_->fork(1, 2, 10, 11));
  const Tokens parent = table(1), child = table(2);
  EXPECT_EQ(Tokens(child.begin(), child.begin() + 2), Tokens(parent.begin(), parent.begin() + 2));
  EXPECT_NE(child[2], parent[2]);
  ASSERT_EQ(copies().size(), 1u);
  EXPECT_EQ(copies_[0].source, parent[2]);
  EXPECT_EQ(copies_[0].destination, child[2]);
  EXPECT_EQ(copies_[0].num_tokens, 2);
  EXPECT_EQ(used(), 4);
}

TEST_F(KvForkTest, AtABlocksEndNothingIsCopied) {
  ASSERT_TRUE(cache_->extend(1, 12));
  cache_->mark_computed(1, iota(12));
  ASSERT_TRUE(cache_->fork(1, 2, 12, 13));
  EXPECT_TRUE(copies().empty());
  EXPECT_EQ(table(2).size(), 4u);
  EXPECT_EQ(used(), 4);
}

TEST_F(KvForkTest, SharedBlocksOutliveEitherSide) {
  ASSERT_TRUE(cache_->fork(1, 2, 10, 11));
  const Tokens child = table(2);
  cache_->remove_sequence(1, false);
  EXPECT_EQ(table(2), child);
  EXPECT_EQ(used(), 3);
  cache_->remove_sequence(2, false);
  EXPECT_EQ(used(), 0);
}

TEST_F(KvForkTest, AForkOfAForkSharesWhatWasNeverPublished) {
  ASSERT_TRUE(cache_->fork(1, 2, 10, 14));  // computes 10 to 13, tells nobody
  ASSERT_TRUE(cache_->fork(2, 3, 13, 14));
  EXPECT_EQ(table(3)[2], table(2)[2]);
  EXPECT_EQ(copies().back().num_tokens, 1);
  cache_->remove_sequence(2, false);
  EXPECT_EQ(used(), 5);  // 0, 1 shared with 1; 2 alone has the rest
}

TEST_F(KvForkTest, BothEndsAreFoundAgain) {
  ASSERT_TRUE(cache_->fork(1, 2, 10, 14));
  ASSERT_TRUE(cache_->fork(2, 3, 12, 14));
  const Tokens two = tokens_ + Tokens{50, 51, 52, 53}, three = tokens_ + Tokens{50, 51, 62, 63};
  cache_->mark_computed(2, two);
  cache_->mark_computed(3, three);
  cache_->check_invariants();
  for (const SequenceId id : {2, 3, 1}) cache_->remove_sequence(id, true);
  EXPECT_EQ(found(two), 14);
  EXPECT_EQ(found(three), 14);
  EXPECT_EQ(used(), 0);
}

TEST_F(KvForkTest, WithoutReuseBlocksAreSharedAndFreed) {
  start({.num_blocks = 8, .block_size = 4, .enable_reuse = false});
  ASSERT_TRUE(cache_->fork(1, 2, 10, 11));
  EXPECT_EQ(used(), 4);
  cache_->remove_sequence(1, true);
  cache_->remove_sequence(2, true);
  EXPECT_EQ(cache_->stats().free_blocks, 8);
  EXPECT_EQ(cache_->stats().cached_blocks, 0);
}

TEST_F(KvForkTest, RefusalChangesNothing) {
  KvCacheManager::Admission admission;
  ASSERT_TRUE(cache_->add_sequence(9, iota(17, 100), 17, true, &admission));
  EXPECT_EQ(cache_->stats().free_blocks, 0);
  EXPECT_FALSE(cache_->fork(1, 2, 10, 11));
  EXPECT_TRUE(copies().empty());
  EXPECT_THROW(cache_->block_table(2), Error);
  cache_->check_invariants();
}

TEST_F(KvForkTest, MisuseIsNamed) {
  EXPECT_THROW(cache_->fork(7, 2, 10, 11), Error);
  EXPECT_THROW(cache_->fork(1, 1, 10, 11), Error);
  EXPECT_THROW(cache_->fork(1, 2, 9, 11), Error);   // fewer than are known to be computed
  EXPECT_THROW(cache_->fork(1, 2, 13, 14), Error);  // more than the parent has blocks for
  EXPECT_THROW(cache_->fork(1, 2, 10, 9), Error);
}

}  // namespace
}  // namespace inflight
