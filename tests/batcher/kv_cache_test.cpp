#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "inflight_batcher/kv_cache/kv_cache_manager.h"
#include "inflight_batcher/kv_cache/prefix_tree.h"

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

/// A manager whose invariants are checked after every test, and shorthands for a sequence's life.
class KvCacheTest : public testing::Test {
 protected:
  void TearDown() override { cache().check_invariants(); }

  KvCacheManager& make(const KvCacheManager::Config& config) {
    cache_ = std::make_unique<KvCacheManager>(config);
    return *cache_;
  }
  KvCacheManager& cache() { return cache_ ? *cache_ : make({.num_blocks = 8, .block_size = 4}); }

  struct Added : KvCacheManager::Admission {
    std::vector<KvBlockCopy> copies;
  };

  Added add(SequenceId id, const Tokens& tokens, bool reuse = true) {
    Added added;
    EXPECT_TRUE(cache().add_sequence(id, tokens, static_cast<int>(tokens.size()), reuse, &added));
    cache().take_copies(added.copies);
    return added;
  }

  void compute(SequenceId id, const Tokens& tokens) { cache().mark_computed(id, tokens); }

  Added run(SequenceId id, const Tokens& tokens, bool keep = true) {
    const Added added = add(id, tokens);
    compute(id, tokens);
    cache().remove_sequence(id, keep);
    return added;
  }

  /// How many of these tokens a sequence would find now; leaves no trace but in the order of eviction.
  int find(const Tokens& tokens) {
    const SequenceId probe = 1000;
    const int reused = add(probe, tokens + Tokens{-1}).reused_tokens;
    cache().remove_sequence(probe, true);
    return reused;
  }

  Tokens table(SequenceId id) {
    const auto blocks = cache().block_table(id);
    return {blocks.begin(), blocks.end()};
  }

  std::unique_ptr<KvCacheManager> cache_;
};

TEST_F(KvCacheTest, RepeatedPromptOfFourBlocksSharesThreeAndCopiesOne) {
  make({.num_blocks = 16, .block_size = 32});
  const Tokens prompt = iota(110);
  const auto first = run(1, prompt);
  EXPECT_EQ(first.new_blocks, 4);
  EXPECT_EQ(first.reused_blocks, 0);
  EXPECT_TRUE(first.copies.empty());

  const auto second = add(2, prompt);
  EXPECT_EQ(second.new_blocks, 1);
  EXPECT_EQ(second.reused_blocks, 4);
  EXPECT_EQ(second.reused_tokens, 109);
  ASSERT_EQ(second.copies.size(), 1);
  EXPECT_EQ(second.copies[0].num_tokens, 13);
  EXPECT_EQ(second.copies[0].destination, table(2)[3]);
  EXPECT_NE(second.copies[0].source, table(2)[3]);
  EXPECT_EQ(cache().stats().reused_blocks, 4);
}

TEST_F(KvCacheTest, LastTokenIsNeverReused) {
  run(1, iota(8));
  EXPECT_EQ(add(2, iota(8)).reused_tokens, 7);
  EXPECT_EQ(cache().count_reusable_blocks(iota(8)), 1);
  EXPECT_EQ(cache().count_reusable_blocks(iota(9)), 2);
  EXPECT_EQ(add(3, iota(1)).reused_tokens, 0);
}

TEST_F(KvCacheTest, HeldFullBlocksAreSharedOnceComputed) {
  add(1, iota(9));
  EXPECT_EQ(add(2, iota(9)).reused_tokens, 0);
  compute(1, iota(5));
  const auto third = add(3, iota(9));
  EXPECT_EQ(third.reused_blocks, 1);
  EXPECT_EQ(table(3)[0], table(1)[0]);
  EXPECT_EQ(cache().stats().free_blocks, 0);
}

TEST_F(KvCacheTest, UncomputedTokensAreNotFoundAfterTheEnd) {
  add(1, iota(12));
  compute(1, iota(6));
  cache().remove_sequence(1, true);
  EXPECT_EQ(find(iota(12)), 6);
}

TEST_F(KvCacheTest, DivergingPromptCopiesTheCommonPartOfAFullHeldBlock) {
  add(1, iota(8));
  compute(1, iota(8));
  const auto second = add(2, iota(6) + Tokens{70, 71, 72});
  EXPECT_EQ(second.reused_tokens, 6);
  ASSERT_EQ(second.copies.size(), 1);
  EXPECT_EQ(second.copies[0].source, table(1)[1]);
  EXPECT_EQ(second.copies[0].num_tokens, 2);
}

TEST_F(KvCacheTest, SameBlockUnderAnotherPrefixIsNotReused) {
  run(1, iota(4) + iota(4, 50));
  EXPECT_EQ(find(iota(4, 90) + iota(4, 50)), 0);
  EXPECT_EQ(find(iota(4, 50)), 0);
}

TEST_F(KvCacheTest, SourceOfACopyOutlivesItsAdmission) {
  run(1, iota(3));        // the oldest cached block: first to be evicted
  run(2, iota(28, 100));  // the other seven
  const auto third = add(3, iota(3) + iota(20, 200));
  ASSERT_EQ(third.copies.size(), 1);
  const Tokens blocks = table(3);
  EXPECT_EQ(std::ranges::count(blocks, third.copies[0].source), 0);
}

TEST_F(KvCacheTest, CopyIsGivenUpWhenItsSourceIsTheLastBlock) {
  run(1, iota(3));
  const auto second = add(2, iota(3) + iota(29, 200));
  EXPECT_EQ(second.new_blocks, 8);
  EXPECT_EQ(second.reused_blocks, 0);
  EXPECT_EQ(second.reused_tokens, 0);
  EXPECT_TRUE(second.copies.empty());
}

TEST_F(KvCacheTest, LeastRecentlyReleasedIsEvictedFirst) {
  run(1, iota(12));
  run(2, iota(12, 100));
  EXPECT_EQ(find(iota(12)), 12);  // now the younger one
  run(3, iota(16, 200));
  EXPECT_EQ(cache().count_reusable_blocks(iota(13)), 3);
  EXPECT_EQ(cache().count_reusable_blocks(iota(13, 100)), 1);
  EXPECT_EQ(cache().stats().evicted_blocks, 2);
}

TEST_F(KvCacheTest, LeavesAreEvictedBeforeWhatPrecedesThem) {
  run(1, iota(32));
  run(2, iota(12, 100));
  EXPECT_EQ(cache().count_reusable_blocks(iota(33)), 5);
}

TEST_F(KvCacheTest, HeldBlocksAreNeverEvicted) {
  add(1, iota(16));
  compute(1, iota(16));
  run(2, iota(16, 100));
  run(3, iota(16, 200));
  EXPECT_EQ(find(iota(12) + Tokens{-2}), 12);
  EXPECT_EQ(cache().stats().used_blocks, 4);
}

TEST_F(KvCacheTest, AddIsRefusedWithoutAnyChange) {
  run(1, iota(8));
  add(2, iota(16, 100));
  const auto before = cache().stats();
  KvCacheManager::Admission admission;
  EXPECT_FALSE(cache().add_sequence(3, iota(20), 20, true, &admission));
  const auto after = cache().stats();
  EXPECT_EQ(after.free_blocks, before.free_blocks);
  EXPECT_EQ(after.cached_blocks, before.cached_blocks);
  EXPECT_EQ(after.evicted_blocks, before.evicted_blocks);
  EXPECT_THROW(cache().block_table(3), Error);
}

TEST_F(KvCacheTest, ExtendGrowsTheTableAtItsEnd) {
  add(1, iota(5));
  const Tokens before = table(1);
  EXPECT_TRUE(cache().extend(1, 8));
  EXPECT_EQ(table(1), before);
  EXPECT_TRUE(cache().extend(1, 17));
  const auto grown = cache().block_table(1);
  ASSERT_EQ(grown.size(), 5);
  EXPECT_TRUE(std::ranges::equal(grown.first(2), before));
  EXPECT_FALSE(cache().extend(1, 33));
  EXPECT_EQ(table(1).size(), 5);
}

TEST_F(KvCacheTest, SequencesSideBySideKeepTheirOwnBlocksAndLeaveOneCopy) {
  add(1, iota(8));
  add(2, iota(8));
  compute(1, iota(8));
  const Tokens before = table(2);
  compute(2, iota(8));
  EXPECT_EQ(table(2), before);
  EXPECT_EQ(cache().stats().used_blocks, 4);
  cache().remove_sequence(1, true);
  EXPECT_EQ(cache().stats().cached_blocks, 0);
  cache().remove_sequence(2, true);
  EXPECT_EQ(cache().stats().cached_blocks, 2);
  EXPECT_EQ(find(iota(8)), 8);
}

TEST_F(KvCacheTest, FillingABlockThatIsCachedReplacesTheCachedOne) {
  add(1, iota(8));
  add(2, iota(8));
  compute(1, iota(8));
  cache().remove_sequence(1, true);
  EXPECT_EQ(cache().stats().cached_blocks, 2);
  compute(2, iota(8));
  EXPECT_EQ(cache().stats().cached_blocks, 0);
  EXPECT_EQ(cache().stats().free_blocks, 6);
}

TEST_F(KvCacheTest, WhatFollowsADuplicateIsFound) {
  add(1, iota(8));
  add(2, iota(8));
  compute(1, iota(8));
  EXPECT_TRUE(cache().extend(2, 16));
  compute(2, iota(16));
  cache().remove_sequence(1, true);
  EXPECT_EQ(find(iota(12)), 12);
  cache().remove_sequence(2, true);
  EXPECT_EQ(find(iota(16)), 16);
}

TEST_F(KvCacheTest, ManySequencesAreSharedAndReleasedInAnyOrder) {
  add(1, iota(9));
  compute(1, iota(8));
  add(2, iota(9));
  add(3, iota(9));
  cache().remove_sequence(1, true);
  cache().check_invariants();
  EXPECT_EQ(cache().stats().used_blocks, 4);
  cache().remove_sequence(3, true);
  EXPECT_EQ(add(4, iota(9)).reused_blocks, 2);
  EXPECT_EQ(table(4)[0], table(2)[0]);
}

TEST_F(KvCacheTest, NotKeptContentIsForgotten) {
  run(1, iota(10), /*keep=*/false);
  EXPECT_EQ(find(iota(10)), 0);
  EXPECT_EQ(cache().stats().cached_blocks, 0);
}

TEST_F(KvCacheTest, NotKeptContentThatOthersHoldOrFollowStays) {
  add(1, iota(9));
  compute(1, iota(9));
  add(2, iota(9));
  cache().remove_sequence(1, false);
  EXPECT_EQ(cache().count_reusable_blocks(iota(9)), 2);
  cache().remove_sequence(2, true);
  add(3, iota(5));
  cache().remove_sequence(3, false);
  EXPECT_EQ(find(iota(8)), 8);
}

TEST_F(KvCacheTest, LongerContentReplacesAPartialBlockThatItStartsWith) {
  run(1, iota(2));
  EXPECT_EQ(cache().stats().cached_blocks, 1);
  run(2, iota(3));
  EXPECT_EQ(cache().stats().cached_blocks, 1);
  run(3, iota(2));
  EXPECT_EQ(cache().stats().cached_blocks, 1);
  EXPECT_EQ(find(iota(3)), 3);
  run(4, iota(4));
  EXPECT_EQ(cache().stats().cached_blocks, 1);
  EXPECT_EQ(cache().count_reusable_blocks(iota(5)), 1);
}

TEST_F(KvCacheTest, WithoutPartialReuseOnlyWholeBlocksAreFound) {
  make({.num_blocks = 8, .block_size = 4, .enable_partial_reuse = false});
  run(1, iota(11));
  EXPECT_EQ(cache().stats().cached_blocks, 2);
  EXPECT_EQ(find(iota(11)), 8);
}

TEST_F(KvCacheTest, WithoutReuseNothingIsKept) {
  make({.num_blocks = 8, .block_size = 4, .enable_reuse = false});
  run(1, iota(11));
  EXPECT_EQ(cache().stats().cached_blocks, 0);
  EXPECT_EQ(find(iota(11)), 0);
  EXPECT_EQ(cache().count_reusable_blocks(iota(11)), 0);
}

TEST_F(KvCacheTest, SequenceThatRefusesReuseComputesAllAndIsFoundByOthers) {
  run(1, iota(8));
  EXPECT_EQ(add(2, iota(12), /*reuse=*/false).reused_tokens, 0);
  compute(2, iota(12));
  cache().remove_sequence(2, true);
  EXPECT_EQ(find(iota(12)), 12);
}

TEST_F(KvCacheTest, ClearCacheFreesWhatNobodyHolds) {
  add(1, iota(9));
  compute(1, iota(9));
  run(2, iota(8) + iota(6, 50));
  cache().clear_cache();
  EXPECT_EQ(cache().stats().cached_blocks, 0);
  EXPECT_EQ(cache().stats().used_blocks, 3);
  EXPECT_EQ(cache().count_reusable_blocks(iota(9)), 2);
}

TEST_F(KvCacheTest, NeededBlocksAreWhatAddingTakes) {
  add(1, iota(9));
  compute(1, iota(9));
  run(2, iota(8) + iota(8, 50));
  const Tokens prompt = iota(8) + iota(6, 50);  // two held blocks, one cached, one new
  EXPECT_EQ(cache().count_needed_blocks(prompt, 14, true), 2);
  EXPECT_EQ(cache().count_needed_blocks(prompt, 14, false), 4);
  const int before = cache().stats().free_blocks;
  add(3, prompt);
  EXPECT_EQ(before - cache().stats().free_blocks, 2);
}

TEST_F(KvCacheTest, MisuseIsNamed) {
  add(1, iota(8));
  KvCacheManager::Admission admission;
  EXPECT_THROW(cache().add_sequence(1, iota(8), 8, true, &admission), Error);
  EXPECT_THROW(cache().extend(2, 8), Error);
  EXPECT_THROW(compute(1, iota(9)), Error);
  compute(1, iota(6));
  EXPECT_THROW(compute(1, iota(5)), Error);
  EXPECT_THROW(cache().remove_sequence(2, true), Error);
  EXPECT_THROW(KvCacheManager({.num_blocks = 0}), Error);
}

TEST(PrefixTreeTest, LongestMatchAmongManySiblingsIsThatOfALinearSearch) {
  const int block_size = 6;
  PrefixTree tree(300, block_size);
  std::mt19937 random(7);
  const auto draw = [&](int count) {
    Tokens tokens(count);
    for (TokenId& token : tokens) token = static_cast<TokenId>(random() % 4);
    return tokens;
  };
  std::vector<Tokens> children;
  for (int i = 0; i < 300; ++i) {
    const Tokens tokens = draw(block_size);
    if (tree.find(PrefixTree::kRoot, tokens) != PrefixTree::kNone) continue;
    tree.insert(PrefixTree::kRoot, tokens);
    children.push_back(tokens);
  }
  tree.check_invariants();
  for (int i = 0; i < 500; ++i) {
    const Tokens query = draw(1 + static_cast<int>(random() % block_size));
    size_t best = 0;
    for (const Tokens& child : children) {
      best = std::max<size_t>(best, std::ranges::mismatch(query, child).in1 - query.begin());
    }
    const auto match = tree.longest_match(PrefixTree::kRoot, query);
    ASSERT_EQ(match.length, best);
    ASSERT_TRUE(std::ranges::equal(tree.key(match.node).tokens.first(best), std::span(query).first(best)));
  }
}

}  // namespace
}  // namespace inflight
