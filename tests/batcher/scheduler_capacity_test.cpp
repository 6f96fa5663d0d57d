#include "tests/batcher/scheduler_fixture.h"

namespace inflight {
namespace {

constexpr CapacityPolicy kMaxUtilization = CapacityPolicy::kMaxUtilization;

using SchedulerCapacityTest = SchedulerTest;

TEST_F(SchedulerCapacityTest, GuaranteedAdmissionReservesUpToTheLastToken) {
  make({}, /*num_blocks=*/4);
  add(1, 2, 9);  // 8 computed tokens: 2 blocks
  add(2, 2, 13);
  add(3, 2, 9);
  EXPECT_EQ(describe(advance()), "1:0+2*");
  for (int computed = 2; computed < 8; ++computed) {
    EXPECT_EQ(describe(advance_to(9)), concat("1:", computed, "+1*"));
  }
  EXPECT_FALSE(scheduler_->contains(1));
  EXPECT_EQ(describe(advance()), "2:0+2*");
}

TEST_F(SchedulerCapacityTest, GuaranteedAdmissionCountsSharedHeldBlocksOnce) {
  make({}, /*num_blocks=*/6, /*reuse=*/true);
  add(1, 13, 17, 0.5f, 100);  // 4 blocks
  advance();
  add(2, 13, 17, 0.5f, 100);  // 3 of them shared, 1 more
  add(3, 13, 17, 0.5f, 100);
  add(4, 13, 17, 0.5f, 100);
  EXPECT_EQ(describe(advance()), "1:13+1* 2:12+1* 3:12+1*");
}

TEST_F(SchedulerCapacityTest, BlockedHeadIsNotOvertaken) {
  make({}, /*num_blocks=*/4);
  add(1, 8, 9);
  advance();
  add(2, 9, 13);
  add(3, 2, 3);
  EXPECT_TRUE(advance().items.empty());
  scheduler_->finish(1);
  EXPECT_EQ(describe(advance()), "2:0+9* 3:0+2*");
}

TEST_F(SchedulerCapacityTest, MaxUtilizationPausesTheYoungest) {
  make({.policy = kMaxUtilization}, /*num_blocks=*/3);
  add(1, 4, 12);
  add(2, 4, 12);
  add(3, 4, 12);
  EXPECT_EQ(describe(advance()), "1:0+4* 2:0+4* 3:0+4*");
  const auto step = advance();
  EXPECT_EQ(step.paused, std::vector<SequenceId>{3});
  EXPECT_EQ(describe(step), "1:4+1*");  // 2 wants a block too, keeps what it has and waits
  EXPECT_EQ(scheduler_->counts().running, 2);
}

TEST_F(SchedulerCapacityTest, MaxUtilizationPausesTheLowestPriority) {
  make({.policy = kMaxUtilization}, /*num_blocks=*/4);
  add(1, 4, 12, 0.1f);
  add(2, 4, 12, 0.9f);
  add(3, 4, 12, 0.5f);
  EXPECT_EQ(describe(advance()), "2:0+4* 3:0+4* 1:0+4*");
  const auto step = advance();
  EXPECT_EQ(step.paused, std::vector<SequenceId>{1});
  EXPECT_EQ(describe(step), "2:4+1* 3:4+1*");
}

TEST_F(SchedulerCapacityTest, StepThatPausesAdmitsNobody) {
  make({.policy = kMaxUtilization}, /*num_blocks=*/4);
  add(1, 4, 12);
  add(2, 12, 16);
  advance();
  add(3, 8, 12, 0.9f);
  const auto step = advance();  // 2 leaves three blocks, 1 takes one of them
  EXPECT_EQ(step.paused, std::vector<SequenceId>{2});
  EXPECT_EQ(describe(step), "1:4+1*");
  EXPECT_EQ(describe(advance()), "1:5+1* 3:0+8*");
}

TEST_F(SchedulerCapacityTest, PausedSequenceWaitsBeforeLaterArrivals) {
  make({.policy = kMaxUtilization}, /*num_blocks=*/3);
  add(1, 4, 12);
  add(2, 8, 12);
  advance();
  add(3, 1, 12);
  EXPECT_EQ(advance().paused, std::vector<SequenceId>{2});
  EXPECT_EQ(describe(advance()), "1:5+1*");  // a block is free, 2 needs three
  scheduler_->finish(1);
  EXPECT_EQ(describe(advance()), "2:0+9*");
}

TEST_F(SchedulerCapacityTest, PausedSequenceRecomputesPromptAndGeneratedTokens) {
  make({.policy = kMaxUtilization}, /*num_blocks=*/4);
  add(1, 7, 16);
  add(2, 6, 16);
  advance();
  advance();  // 1 has 9 tokens, 8 computed; 2 has 8, 7 computed
  const auto step = advance_to(16);
  EXPECT_EQ(step.paused, std::vector<SequenceId>{2});
  EXPECT_EQ(scheduler_->tokens(2).size(), 8);
  scheduler_->finish(1);
  const auto next = advance();
  EXPECT_EQ(describe(next), "2:0+8*");
  EXPECT_TRUE(next.items[0].admitted && next.items[0].is_context);
  EXPECT_EQ(describe(advance()), "2:8+1*");
}

TEST_F(SchedulerCapacityTest, PausedSequenceFindsItsBlocksWhileTheyLast) {
  make({.policy = kMaxUtilization}, /*num_blocks=*/4, /*reuse=*/true);
  add(1, 7, 16);
  add(2, 6, 16);
  advance();
  advance();
  EXPECT_EQ(advance().paused, std::vector<SequenceId>{2});
  scheduler_->finish(1);
  const auto next = advance();
  EXPECT_EQ(next.items[0].first, 4);  // its first block; the second one was taken
  EXPECT_EQ(next.items[0].admission.reused_blocks, 1);
}

TEST_F(SchedulerCapacityTest, TwoSequencesThatFillThePoolEachEndInOrder) {
  make({.policy = kMaxUtilization}, /*num_blocks=*/4);
  add(1, 4, 17);
  add(2, 4, 17);
  std::vector<SequenceId> ended;
  for (int steps = 0; ended.size() < 2; ++steps) {
    ASSERT_LT(steps, 60);
    for (const Scheduler::Item& item : advance_to(17).items) {
      if (!scheduler_->contains(item.id)) ended.push_back(item.id);
    }
  }
  EXPECT_EQ(ended, (std::vector<SequenceId>{1, 2}));
}

TEST_F(SchedulerCapacityTest, GrowthWaitsForASequenceInFlightInsteadOfPausingIt) {
  make({.policy = kMaxUtilization}, /*num_blocks=*/2);
  add(1, 4, 9);
  const auto first = plan();
  add(2, 4, 9);
  const auto second = plan();
  EXPECT_EQ(describe(second), "2:0+4*");
  complete(first);
  const auto blocked = plan();
  EXPECT_TRUE(blocked.items.empty() && blocked.paused.empty());
  complete(second);
  const auto step = advance();
  EXPECT_EQ(step.paused, std::vector<SequenceId>{2});
  EXPECT_EQ(describe(step), "1:4+1*");
}

TEST_F(SchedulerCapacityTest, MaxUtilizationKeepsAReserveForGrowth) {
  make({.policy = kMaxUtilization}, /*num_blocks=*/64);
  add(1, 4, 256);
  advance();
  add(2, 62 * 4, 256);  // would leave no block
  EXPECT_EQ(describe(advance()), "1:4+1*");
  scheduler_->finish(1);
  EXPECT_EQ(describe(advance()), "2:0+248*");
}

}  // namespace
}  // namespace inflight
