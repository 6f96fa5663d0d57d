#include <gtest/gtest.h>

#include <map>
#include <numeric>

#include "inflight_batcher/kv_cache/kv_cache_manager.h"

namespace inflight {
namespace {

using Tokens = std::vector<TokenId>;
constexpr KvMemory kDevice = KvMemory::kDevice, kHost = KvMemory::kHost;

Tokens prompt(int count, TokenId first) {
  Tokens tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

/// Four blocks of four tokens on the device, six in the host's memory; what blocks hold is followed by their first
/// token.
class KvOffloadTest : public testing::Test {
 protected:
  void TearDown() override { cache_->check_invariants(); }

  void make(const KvCacheManager::Config& config) { cache_ = std::make_unique<KvCacheManager>(config); }

  KvCacheManager::Admission add(SequenceId id, const Tokens& tokens, KvCacheManager::PolicyPtr policy = nullptr) {
    KvCacheManager::Admission admission;
    EXPECT_TRUE(cache_->add_sequence(id, tokens, static_cast<int>(tokens.size()), true, &admission, policy));
    run_copies();
    const auto table = cache_->block_table(id);
    for (size_t i = 0; i < tokens.size(); ++i) {
      TokenId& cell = memory_[{kDevice, table[i / 4], static_cast<int>(i % 4)}];
      if (static_cast<int>(i) < admission.reused_tokens) {
        EXPECT_EQ(cell, tokens[i]) << "position " << i;
      }
      cell = tokens[i];
    }
    return admission;
  }

  KvCacheManager::Admission run(const Tokens& tokens, KvCacheManager::PolicyPtr policy = nullptr) {
    const auto admission = add(1, tokens, std::move(policy));
    cache_->mark_computed(1, tokens);
    cache_->remove_sequence(1, true);
    cache_->check_invariants();
    return admission;
  }

  void run_copies() {
    std::vector<KvBlockCopy> copies;
    cache_->take_copies(copies);
    for (const KvBlockCopy& copy : copies)
      for (int i = 0; i < copy.num_tokens; ++i)
        memory_[{copy.to, copy.destination, i}] = memory_.at({copy.from, copy.source, i});
  }

  std::unique_ptr<KvCacheManager> cache_ =
      std::make_unique<KvCacheManager>(KvCacheManager::Config{.num_blocks = 4, .block_size = 4, .num_host_blocks = 6});
  std::map<std::tuple<KvMemory, int, int>, TokenId> memory_;
};

TEST_F(KvOffloadTest, WhatFitsBothPoolsIsFoundAgain) {
  for (int round = 0; round < 3; ++round)
    for (const int first : {0, 100, 200}) EXPECT_EQ(run(prompt(12, first)).reused_tokens, round == 0 ? 0 : 11);
  EXPECT_GT(cache_->stats().onboarded_blocks, 0);
  EXPECT_EQ(cache_->stats().evicted_blocks, 0);
  EXPECT_EQ(cache_->stats().free_blocks, 4);
}

TEST_F(KvOffloadTest, WhatFitsNeitherIsEvicted) {
  for (const int first : {0, 100, 200, 300}) run(prompt(16, first));
  EXPECT_EQ(cache_->stats().used_host_blocks, 6);
  EXPECT_EQ(cache_->stats().evicted_blocks, 6);
  EXPECT_EQ(run(prompt(16, 0)).reused_tokens, 0);
}

TEST_F(KvOffloadTest, LowPriorityDoesNotDriveOutAHigherOneFromTheHost) {
  const auto policy = [](int priority) {
    auto made = std::make_shared<KvPolicy>();
    made->retention.ranges = {{0, std::nullopt, {priority, {}}}};
    made->prompt_tokens = 16;
    return made;
  };
  make({.num_blocks = 4, .block_size = 4, .num_host_blocks = 4});
  run(prompt(16, 0), policy(90));
  run(prompt(16, 100), policy(10));
  EXPECT_EQ(cache_->stats().offloaded_blocks, 4);
  run(prompt(16, 200));
  EXPECT_EQ(cache_->stats().offloaded_blocks, 4);
  EXPECT_EQ(cache_->count_reusable_blocks(prompt(17, 0)), 4);
  EXPECT_EQ(cache_->count_reusable_blocks(prompt(17, 100)), 0);
}

TEST_F(KvOffloadTest, PartOfABlockIsCopiedFromTheHost) {
  run(prompt(12, 0));
  run(prompt(16, 100));
  Tokens other = prompt(10, 0);
  other.push_back(-5);
  EXPECT_EQ(run(other).reused_tokens, 10);
  EXPECT_EQ(cache_->stats().onboarded_blocks, 2);
  EXPECT_EQ(run(prompt(12, 0)).reused_tokens, 11);
}

TEST_F(KvOffloadTest, OnboardingMayDriveOutWhatElseIsThere) {
  run(prompt(16, 0));
  run(prompt(16, 100));
  EXPECT_EQ(run(prompt(16, 0)).reused_tokens, 15);
  EXPECT_EQ(run(prompt(16, 100)).reused_tokens, 15);
}

TEST_F(KvOffloadTest, HeldBlocksStay) {
  add(2, prompt(8, 0));
  cache_->mark_computed(2, prompt(8, 0));
  const auto held = cache_->block_table(2);
  const Tokens before(held.begin(), held.end());
  for (const int first : {100, 200, 300}) run(prompt(8, first));
  const auto after = cache_->block_table(2);
  EXPECT_EQ(Tokens(after.begin(), after.end()), before);
  KvCacheManager::Admission admission;
  EXPECT_FALSE(cache_->add_sequence(3, prompt(12, 100), 12, true, &admission));
  cache_->check_invariants();
  EXPECT_EQ(cache_->count_needed_blocks(prompt(12, 100), 12, true), 3);
}

TEST_F(KvOffloadTest, WhatIsComputedAnewLeavesTheHost) {
  run(prompt(8, 0));
  run(prompt(16, 100));
  EXPECT_EQ(cache_->stats().used_host_blocks, 2);
  KvCacheManager::Admission admission;
  ASSERT_TRUE(cache_->add_sequence(2, prompt(8, 0), 8, /*reuse=*/false, &admission));
  cache_->mark_computed(2, prompt(8, 0));
  cache_->check_invariants();
  EXPECT_EQ(cache_->stats().used_host_blocks, 2);  // two others have taken their place
  cache_->remove_sequence(2, true);
}

TEST_F(KvOffloadTest, WithoutOnboardingWhatMovedOutIsNotFound) {
  make({.num_blocks = 4, .block_size = 4, .num_host_blocks = 6, .onboard_blocks = false});
  run(prompt(16, 0));
  run(prompt(16, 100));
  EXPECT_EQ(cache_->stats().offloaded_blocks, 4);
  EXPECT_EQ(run(prompt(16, 0)).reused_tokens, 0);
  EXPECT_EQ(cache_->stats().onboarded_blocks, 0);
}

TEST_F(KvOffloadTest, ClearForgetsTheHostsBlocksToo) {
  run(prompt(16, 0));
  run(prompt(16, 100));
  cache_->clear_cache();
  EXPECT_EQ(cache_->stats().used_host_blocks, 0);
  EXPECT_EQ(cache_->stats().cached_blocks, 0);
  EXPECT_EQ(run(prompt(16, 0)).reused_tokens, 0);
}

}  // namespace
}  // namespace inflight
