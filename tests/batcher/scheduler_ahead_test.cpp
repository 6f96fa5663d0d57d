#include "tests/batcher/scheduler_fixture.h"

namespace inflight {
namespace {

constexpr CapacityPolicy kMaxUtilization = CapacityPolicy::kMaxUtilization;

class SchedulerAheadTest : public SchedulerTest {
 protected:
  void make_ahead(Scheduler::Config config = {}, int num_blocks = 64, bool reuse = false) {
    config.plan_ahead = true;
    make(config, num_blocks, reuse);
  }
};

TEST_F(SchedulerAheadTest, TheNextPositionIsPlannedBeforeItsTokenIsKnown) {
  make_ahead();
  add(1, 5, 9);
  const auto first = plan(), second = plan();
  EXPECT_EQ(describe(first), "1:0+5*");
  EXPECT_EQ(describe(second), "1:5+1*");
  EXPECT_FALSE(second.items[0].is_context);
  EXPECT_EQ(scheduler_->tokens(second.items[0]).size(), 5u);  // position 5 is the pending one
  EXPECT_TRUE(plan().items.empty());                          // two at most
  complete(first);
  EXPECT_EQ(describe(plan()), "1:6+1*");
  complete(second);
  EXPECT_EQ(scheduler_->tokens(1).size(), 7u);
}

TEST_F(SchedulerAheadTest, NoTokenIsPlannedBeyondTheLast) {
  make_ahead();
  add(1, 5, 7);
  const auto first = plan(), second = plan();
  complete(first);
  EXPECT_TRUE(plan().items.empty());  // the seventh token is on its way
  complete(second);
  EXPECT_TRUE(plan().items.empty());
  EXPECT_EQ(scheduler_->tokens(1).size(), 7u);
  scheduler_->finish(1);
  EXPECT_EQ(cache_->stats().used_blocks, 0);
}

TEST_F(SchedulerAheadTest, TheNextChunkIsPlannedWhileTheOneBeforeIsInFlight) {
  make_ahead({.max_num_tokens = 4});
  add(1, 10, 16);
  const auto first = plan(), second = plan();
  EXPECT_EQ(describe(first), "1:0+4");
  EXPECT_EQ(describe(second), "1:4+4");
  complete(first);
  const auto third = plan();
  EXPECT_EQ(describe(third), "1:8+2*");
  EXPECT_TRUE(third.items[0].is_context);
  complete(second);
  EXPECT_EQ(describe(plan()), "1:10+1*");
}

TEST_F(SchedulerAheadTest, EveryStepHasEverySequence) {
  make_ahead({.max_batch_size = 8});
  for (SequenceId id = 1; id <= 3; ++id) add(id, 4, 10);
  const auto first = plan();
  add(4, 4, 10);
  const auto second = plan();
  EXPECT_EQ(describe(first), "1:0+4* 2:0+4* 3:0+4*");
  EXPECT_EQ(describe(second), "1:4+1* 2:4+1* 3:4+1* 4:0+4*");
  EXPECT_THROW(Scheduler({.steps_in_flight = 2, .plan_ahead = true}, *cache_), Error);
}

TEST_F(SchedulerAheadTest, FinishHoldsBlocksAndSlotUntilTheLastItemCompletes) {
  make_ahead({.max_batch_size = 1});
  add(1, 7, 16);
  const auto first = plan(), second = plan();
  complete(first);
  scheduler_->finish(1);  // its first token was an end
  EXPECT_FALSE(scheduler_->contains(1));
  add(2, 5, 8);
  EXPECT_TRUE(plan().items.empty());
  EXPECT_EQ(cache_->stats().used_blocks, 2);
  complete(second);
  EXPECT_EQ(cache_->stats().used_blocks, 0);
  EXPECT_EQ(describe(plan()), "2:0+5*");
}

TEST_F(SchedulerAheadTest, FinishWithTwoItemsInFlightOutlivesBoth) {
  make_ahead();
  add(1, 7, 16);
  const auto first = plan(), second = plan();
  scheduler_->finish(1);
  complete(first);
  EXPECT_EQ(cache_->stats().used_blocks, 2);
  EXPECT_THROW(add(1, 5, 8), Error);
  scheduler_->complete(second.items[0], std::nullopt);  // its step failed
  EXPECT_EQ(cache_->stats().used_blocks, 0);
  add(1, 5, 8);
}

TEST_F(SchedulerAheadTest, OnlyKnownTokensCanBeFound) {
  make_ahead({}, 64, /*reuse=*/true);
  add(1, 7, 16, 0.5f, 100);
  const auto first = plan(), second = plan();  // the second one fills the block with the pending token
  complete(first);
  add(2, 8, 16, 0.5f, 100);
  EXPECT_EQ(describe(plan()), "1:8+1* 2:4+4*");
  complete(second);  // 100..106 and 7
  std::vector<TokenId> prompt = {100, 101, 102, 103, 104, 105, 106, 7, 1};
  scheduler_->add({3, prompt, 16});
  const auto third = plan();
  EXPECT_EQ(third.items.back().id, 3u);
  EXPECT_EQ(third.items.back().first, 8);
}

TEST_F(SchedulerAheadTest, AVictimInFlightIsLeftOutThenPaused) {
  make_ahead({.policy = kMaxUtilization}, /*num_blocks=*/2);
  add(1, 3, 9);
  add(2, 2, 9);
  const auto first = plan(), second = plan();
  EXPECT_EQ(describe(second), "1:3+1* 2:2+1*");
  complete(first);
  const auto third = plan();  // 1 wants a second block; 2 could go on, but has to land
  EXPECT_TRUE(third.items.empty() && third.paused.empty());
  complete(second);
  const auto fourth = plan();
  EXPECT_EQ(fourth.paused, std::vector<SequenceId>{2});
  EXPECT_EQ(describe(fourth), "1:4+1*");
  EXPECT_EQ(scheduler_->tokens(2).size(), 4u);
}

TEST_F(SchedulerAheadTest, OnlyAsManyAreLeftOutAsBlocksAreShort) {
  make_ahead({.policy = kMaxUtilization}, /*num_blocks=*/4);
  add(1, 3, 9);
  for (SequenceId id = 2; id <= 4; ++id) add(id, 2, 9);
  const auto first = plan(), second = plan();
  complete(first);
  EXPECT_EQ(describe(plan()), "2:3+1* 3:3+1*");
  complete(second);
}

TEST_F(SchedulerAheadTest, BlocksThatAreAboutToComeSpareAVictim) {
  make_ahead({.policy = kMaxUtilization}, /*num_blocks=*/3);
  add(1, 3, 9);
  add(2, 2, 9);
  add(3, 2, 9);
  const auto first = plan(), second = plan();
  complete(first);
  scheduler_->finish(3);
  EXPECT_EQ(describe(plan()), "2:3+1*");
  complete(second);
  const auto step = plan();
  EXPECT_TRUE(step.paused.empty());
  EXPECT_EQ(describe(step), "1:4+1*");
}

// The copy that brings a part of a block runs with the admission's first step: where that fails, it has not run. What
// it was copied from may be gone by then.
TEST_F(SchedulerAheadTest, AFailedAdmissionLeavesNothingToFind) {
  make_ahead({}, /*num_blocks=*/4, /*reuse=*/true);
  add(1, 7, 8, 0.5f, 100);
  complete(plan());
  scheduler_->finish(1);
  add(2, 7, 8, 0.5f, 100);
  add(3, 8, 9);
  const auto failed = plan();
  EXPECT_EQ(describe(failed), "2:6+1* 3:0+8*");
  EXPECT_EQ(failed.copies.size(), 1u);
  for (const Scheduler::Item& item : failed.items) {
    scheduler_->finish(item.id);
    scheduler_->complete(item, std::nullopt);
  }
  add(4, 7, 8, 0.5f, 100);
  EXPECT_EQ(describe(plan()), "4:4+3*");
}

}  // namespace
}  // namespace inflight
