#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "inflight_batcher/kv_cache/index_heap.h"
#include "inflight_batcher/kv_cache/kv_cache_manager.h"

namespace inflight {
namespace {

using Tokens = std::vector<TokenId>;

Tokens prompt(int count, TokenId first) {
  Tokens tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

KvPolicy policy_of(std::vector<RetentionRange> ranges, int prompt_tokens, Retention decode = {}) {
  return {{std::move(ranges), decode}, prompt_tokens};
}

TEST(KvPolicyTest, BlockHasTheHighestPriorityOfItsTokens) {
  const KvPolicy policy = policy_of({{0, 6, {80, 500}}, {6, std::nullopt, {10, {}}}}, 14, {90, {}});
  EXPECT_EQ(policy.retention_of(0, 4), (Retention{80, 500}));
  EXPECT_EQ(policy.retention_of(4, 8), (Retention{80, 500}));
  EXPECT_EQ(policy.retention_of(8, 12), (Retention{10, {}}));
  EXPECT_EQ(policy.retention_of(12, 14), (Retention{10, {}}));
  EXPECT_EQ(policy.retention_of(12, 16), (Retention{90, {}}));
}

TEST(KvPolicyTest, TokensOutsideAllRangesHaveTheDefault) {
  const KvPolicy policy = policy_of({{4, 9, {1, {}}}}, 12);
  EXPECT_EQ(policy.retention_of(0, 4), Retention());
  EXPECT_EQ(policy.retention_of(4, 8), (Retention{1, {}}));
  EXPECT_EQ(policy.retention_of(8, 12), Retention());
}

TEST(KvPolicyTest, OfEqualPrioritiesTheLongerOneCounts) {
  const KvPolicy policy = policy_of({{0, 2, {50, 10}}, {2, 4, {50, 20}}, {4, 6, {50, 30}}, {6, 8, {50, {}}}}, 8);
  EXPECT_EQ(policy.retention_of(0, 4).duration_ms, 20);
  EXPECT_EQ(policy.retention_of(4, 8).duration_ms, std::nullopt);
}

TEST(IndexHeapTest, GivesIndicesInTheOrderOfAnyKeys) {
  std::mt19937 random(3);
  IndexHeap<int> heap(40);
  std::vector<std::pair<int, int>> wanted;  // key, index
  for (int round = 0; round < 2000; ++round) {
    const int index = static_cast<int>(random() % 40);
    if (heap.contains(index)) {
      heap.remove(index);
      std::erase_if(wanted, [&](const auto& one) { return one.second == index; });
    } else {
      const int key = static_cast<int>(random() % 1000) * 40 + index;
      heap.push(index, key);
      wanted.push_back({key, index});
    }
    ASSERT_EQ(heap.size(), static_cast<int>(wanted.size()));
    if (!wanted.empty()) {
      ASSERT_EQ(heap.top(), std::ranges::min(wanted).second);
    }
  }
}

/// A pool of eight blocks of four tokens, checked after every test.
class KvRetentionTest : public testing::Test {
 protected:
  void TearDown() override { cache_.check_invariants(); }

  void run(const Tokens& tokens, std::vector<RetentionRange> ranges = {}, Retention decode = {}, int prompt = -1) {
    const auto policy = std::make_shared<KvPolicy>(
        policy_of(std::move(ranges), prompt < 0 ? static_cast<int>(tokens.size()) : prompt, decode));
    KvCacheManager::Admission admission;
    ASSERT_TRUE(cache_.add_sequence(1, tokens, static_cast<int>(tokens.size()), true, &admission, policy));
    cache_.mark_computed(1, tokens);
    cache_.remove_sequence(1, true);
    cache_.check_invariants();
  }

  int known_blocks(Tokens tokens) {
    tokens.push_back(-1);
    return cache_.count_reusable_blocks(tokens);
  }

  KvCacheManager cache_{{.num_blocks = 8, .block_size = 4}};
};

TEST_F(KvRetentionTest, HigherPriorityOutlivesWhatCameLater) {
  run(prompt(16, 0), {{0, std::nullopt, {80, {}}}});
  run(prompt(16, 100));
  run(prompt(16, 200));
  EXPECT_EQ(known_blocks(prompt(16, 0)), 4);
  EXPECT_EQ(known_blocks(prompt(16, 100)), 0);
}

TEST_F(KvRetentionTest, LowerPriorityGivesWayBeforeWhatIsOlder) {
  run(prompt(16, 0));
  run(prompt(16, 100), {{0, std::nullopt, {5, {}}}});
  run(prompt(12, 200));
  EXPECT_EQ(known_blocks(prompt(16, 0)), 4);
  EXPECT_EQ(known_blocks(prompt(16, 100)), 1);
}

TEST_F(KvRetentionTest, InsideAPriorityTheLeastRecentlyUsedGoesFirst) {
  run(prompt(16, 0), {{0, std::nullopt, {60, {}}}});
  run(prompt(16, 100), {{0, std::nullopt, {60, {}}}});
  run(prompt(16, 0), {{0, std::nullopt, {60, {}}}});
  run(prompt(8, 200), {{0, std::nullopt, {60, {}}}});
  EXPECT_EQ(known_blocks(prompt(16, 0)), 4);
  EXPECT_EQ(known_blocks(prompt(16, 100)), 2);
}

TEST_F(KvRetentionTest, PartOfAPromptCanBeKept) {
  run(prompt(16, 0), {{0, 8, {90, {}}}, {8, std::nullopt, {0, {}}}});
  run(prompt(16, 100));
  run(prompt(8, 200));
  EXPECT_EQ(known_blocks(prompt(16, 0)), 2);
  EXPECT_EQ(known_blocks(prompt(16, 100)), 4);
}

TEST_F(KvRetentionTest, WhatPrecedesAKeptBlockStaysWithIt) {
  run(prompt(16, 0), {{0, 12, {0, {}}}, {12, std::nullopt, {100, {}}}});
  run(prompt(16, 100));
  run(prompt(16, 200));
  EXPECT_EQ(known_blocks(prompt(16, 0)), 4);
}

TEST_F(KvRetentionTest, GeneratedTokensHaveAPriorityOfTheirOwn) {
  run(prompt(16, 0), {{0, std::nullopt, {90, {}}}}, {0, {}}, 8);
  run(prompt(16, 100));
  run(prompt(8, 200));
  EXPECT_EQ(known_blocks(prompt(16, 0)), 2);
  EXPECT_EQ(known_blocks(prompt(16, 100)), 4);
}

TEST_F(KvRetentionTest, PriorityLastsForItsDurationFromTheRelease) {
  cache_.set_time(1000);
  run(prompt(16, 0), {{0, std::nullopt, {80, 50}}});
  cache_.set_time(1049);
  run(prompt(16, 100));
  run(prompt(16, 200));
  EXPECT_EQ(known_blocks(prompt(16, 0)), 4);
  cache_.set_time(1050);
  cache_.check_invariants();
  run(prompt(16, 300));
  EXPECT_EQ(known_blocks(prompt(16, 0)), 0);
  EXPECT_EQ(known_blocks(prompt(16, 200)), 4);
}

TEST_F(KvRetentionTest, ADurationBeyondTheClockIsForGood) {
  cache_.set_time(1000);
  run(prompt(16, 0), {{0, std::nullopt, {80, INT64_MAX}}});
  cache_.set_time(INT64_MAX - 1);
  run(prompt(16, 100));
  run(prompt(16, 200));
  EXPECT_EQ(known_blocks(prompt(16, 0)), 4);
}

TEST_F(KvRetentionTest, UseStartsTheDurationAnew) {
  run(prompt(16, 0), {{0, std::nullopt, {80, 50}}});
  cache_.set_time(40);
  run(prompt(16, 0), {{0, std::nullopt, {80, 50}}});
  cache_.set_time(80);
  run(prompt(16, 100));
  run(prompt(16, 200));
  EXPECT_EQ(known_blocks(prompt(16, 0)), 4);
}

TEST_F(KvRetentionTest, SequenceWithoutPolicyLeavesThePriority) {
  run(prompt(16, 0), {{0, std::nullopt, {80, {}}}});
  KvCacheManager::Admission admission;
  ASSERT_TRUE(cache_.add_sequence(2, prompt(16, 0), 16, true, &admission));
  cache_.remove_sequence(2, true);
  run(prompt(16, 100));
  run(prompt(16, 200));
  EXPECT_EQ(known_blocks(prompt(12, 0)), 3);
}

TEST_F(KvRetentionTest, PriorityOutlivesTheCopyThatCarriedIt) {
  const Tokens tokens = prompt(8, 0);
  KvCacheManager::Admission admission;
  const auto policy = std::make_shared<KvPolicy>(policy_of({{0, std::nullopt, {80, {}}}}, 8));
  ASSERT_TRUE(cache_.add_sequence(2, tokens, 8, true, &admission, policy));
  ASSERT_TRUE(cache_.add_sequence(3, tokens, 8, true, &admission));
  cache_.mark_computed(2, tokens);
  cache_.mark_computed(3, tokens);
  cache_.remove_sequence(2, true);
  cache_.remove_sequence(3, true);
  run(prompt(24, 100));
  run(prompt(24, 200));
  EXPECT_EQ(known_blocks(tokens), 2);
}

TEST_F(KvRetentionTest, PartialBlockIsKeptToo) {
  run(prompt(6, 0), {{0, std::nullopt, {80, {}}}});
  run(prompt(24, 100));
  run(prompt(24, 200));
  KvCacheManager::Admission admission;
  ASSERT_TRUE(cache_.add_sequence(2, prompt(8, 0), 8, true, &admission));
  EXPECT_EQ(admission.reused_tokens, 6);
  cache_.remove_sequence(2, true);
}

}  // namespace
}  // namespace inflight
