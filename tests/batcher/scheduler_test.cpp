#include <limits>

#include "tests/batcher/scheduler_fixture.h"

namespace inflight {
namespace {

constexpr CapacityPolicy kMaxUtilization = CapacityPolicy::kMaxUtilization;

TEST_F(SchedulerTest, NothingWaitsNothingIsPlanned) {
  make({});
  EXPECT_TRUE(plan().items.empty());
}

TEST_F(SchedulerTest, ContextThenOneTokenAStep) {
  make({});
  add(1, 5, 8);
  const auto first = advance();
  EXPECT_EQ(describe(first), "1:0+5*");
  EXPECT_TRUE(first.items[0].admitted && first.items[0].is_context);
  EXPECT_EQ(first.items[0].admission.new_blocks, 2);
  const auto second = advance();
  EXPECT_EQ(describe(second), "1:5+1*");
  EXPECT_FALSE(second.items[0].admitted || second.items[0].is_context);
  EXPECT_EQ(scheduler_->tokens(1).size(), 7);
  EXPECT_EQ(scheduler_->tokens(1)[6], 7);
}

TEST_F(SchedulerTest, SequenceWithAllItsTokensIsPlannedNoFurther) {
  make({});
  add(1, 5, 6);
  advance();
  EXPECT_TRUE(plan().items.empty());
  scheduler_->finish(1);
  EXPECT_FALSE(scheduler_->contains(1));
  EXPECT_EQ(cache_->stats().used_blocks, 0);
}

TEST_F(SchedulerTest, AdmitsByPriorityThenArrival) {
  make({});
  add(1, 2, 8);
  add(2, 2, 8, 0.9f);
  add(3, 2, 8);
  add(4, 2, 8, 0.9f);
  EXPECT_EQ(describe(plan()), "2:0+2* 4:0+2* 1:0+2* 3:0+2*");
}

TEST_F(SchedulerTest, GenerationGoesBeforeContexts) {
  make({.max_num_tokens = 4});
  add(1, 3, 8);
  advance();
  add(2, 6, 8, 0.9f);
  EXPECT_EQ(describe(advance()), "1:3+1* 2:0+3");
  EXPECT_EQ(describe(advance()), "1:4+1* 2:3+3*");
  EXPECT_EQ(describe(advance()), "2:6+1* 1:5+1*");
}

TEST_F(SchedulerTest, ContextsAreChunkedToTheBudget) {
  make({.max_num_tokens = 4});
  add(1, 6, 8);
  add(2, 5, 8);
  EXPECT_EQ(describe(advance()), "1:0+4");
  EXPECT_EQ(describe(advance()), "1:4+2* 2:0+2");
  EXPECT_EQ(describe(advance()), "1:6+1* 2:2+3*");
}

TEST_F(SchedulerTest, HigherPriorityArrivalGoesBeforeAContextUnderWay) {
  make({.max_num_tokens = 4});
  add(1, 9, 12);
  advance();
  add(2, 3, 8, 0.9f);
  EXPECT_EQ(describe(advance()), "2:0+3* 1:4+1");
}

TEST_F(SchedulerTest, WithoutChunkingAContextWaitsForAStepThatTakesItWhole) {
  make({.max_num_tokens = 6, .enable_chunked_context = false});
  add(1, 4, 8);
  add(2, 6, 8);
  add(3, 1, 8);
  EXPECT_EQ(describe(advance()), "1:0+4*");
  EXPECT_EQ(describe(advance()), "1:4+1*");  // 3 would fit but must not overtake 2
  scheduler_->finish(1);
  EXPECT_EQ(describe(advance()), "2:0+6*");
}

TEST_F(SchedulerTest, WithoutChunkingReusedTokensNeedNoBudget) {
  make({.max_num_tokens = 8, .enable_chunked_context = false}, 64, /*reuse=*/true);
  add(1, 8, 12, 0.5f, 100);
  advance();
  add(2, 8, 12, 0.5f, 100);
  EXPECT_EQ(describe(advance()), "1:8+1* 2:7+1*");
}

TEST_F(SchedulerTest, BatchSizeLimitsTheSlots) {
  make({.max_batch_size = 2});
  for (SequenceId id = 1; id <= 3; ++id) add(id, 2, 8);
  const auto step = advance();
  EXPECT_EQ(describe(step), "1:0+2* 2:0+2*");
  EXPECT_EQ(scheduler_->counts().waiting, 1);
  scheduler_->finish(1);
  const auto next = advance();
  EXPECT_EQ(describe(next), "2:2+1* 3:0+2*");
  EXPECT_EQ(next.items[0].slot, step.items[1].slot);
  EXPECT_EQ(next.items[1].slot, step.items[0].slot);
}

TEST_F(SchedulerTest, SequencesAreDealtOutAmongTheStepsInFlight) {
  make({.max_batch_size = 8, .max_num_tokens = 64, .steps_in_flight = 2});
  for (SequenceId id = 1; id <= 5; ++id) add(id, 4, 10);
  const Scheduler::Step first = plan();
  const Scheduler::Step second = plan();
  EXPECT_EQ(describe(first), "1:0+4* 2:0+4* 3:0+4*");
  EXPECT_EQ(describe(second), "4:0+4* 5:0+4*");
  complete(first);
  EXPECT_EQ(describe(plan()), "1:4+1* 2:4+1* 3:4+1*");
}

TEST_F(SchedulerTest, SequencesInFlightAreLeftAlone) {
  make({});
  add(1, 3, 8);
  const auto first = plan();
  EXPECT_TRUE(plan().items.empty());
  add(2, 3, 8);
  const auto second = plan();
  EXPECT_EQ(describe(second), "2:0+3*");
  complete(first);
  EXPECT_EQ(describe(plan()), "1:3+1*");
  complete(second);
  EXPECT_EQ(describe(plan()), "2:3+1*");
}

TEST_F(SchedulerTest, FinishInFlightHoldsBlocksAndSlotUntilComplete) {
  make({.max_batch_size = 1});
  add(1, 5, 8);
  const auto step = plan();
  scheduler_->finish(1);
  EXPECT_FALSE(scheduler_->contains(1));
  EXPECT_EQ(scheduler_->counts().running, 0);
  EXPECT_EQ(cache_->stats().used_blocks, 2);
  add(2, 5, 8);
  EXPECT_TRUE(plan().items.empty());
  EXPECT_THROW(add(1, 5, 8), Error);
  complete(step);
  EXPECT_EQ(cache_->stats().used_blocks, 0);
  EXPECT_EQ(describe(plan()), "2:0+5*");
}

TEST_F(SchedulerTest, FinishOfAWaitingSequenceLeavesTheQueue) {
  make({.max_batch_size = 1});
  add(1, 2, 8);
  advance();
  add(2, 2, 8);
  add(3, 2, 8);
  scheduler_->finish(2);
  scheduler_->finish(1);
  EXPECT_EQ(describe(plan()), "3:0+2*");
}

TEST_F(SchedulerTest, PrefixOfARunningSequenceIsReused) {
  make({}, 64, /*reuse=*/true);
  add(1, 10, 12, 0.5f, 100);
  advance();
  add(2, 10, 12, 0.5f, 100);
  const auto step = plan();
  EXPECT_EQ(describe(step), "1:10+1* 2:8+2*");
  EXPECT_EQ(step.items[1].admission.reused_blocks, 2);
}

TEST_F(SchedulerTest, FitsNamesBothNumbers) {
  std::string why;
  make({.max_num_tokens = 6, .enable_chunked_context = false}, /*num_blocks=*/4);
  EXPECT_TRUE(scheduler_->fits(6, 17, &why));
  EXPECT_FALSE(scheduler_->fits(6, 18, &why));
  EXPECT_EQ(why, "18 tokens need 5 KV blocks of 4 tokens, the pool has 4");
  EXPECT_FALSE(scheduler_->fits(7, 8, &why));
  EXPECT_EQ(why, "without chunked context a prompt of 7 tokens exceeds max_num_tokens 6");
  make({.max_num_tokens = 6, .enable_chunked_context = false, .policy = kMaxUtilization}, /*num_blocks=*/4);
  EXPECT_TRUE(scheduler_->fits(3, 7, &why));
  EXPECT_FALSE(scheduler_->fits(3, 8, &why));
  EXPECT_EQ(why, "without chunked context recomputing 7 tokens exceeds max_num_tokens 6");
}

TEST_F(SchedulerTest, AddRefusesWhatCouldNeverRun) {
  make({}, /*num_blocks=*/4);
  EXPECT_THROW(add(1, 0, 4), Error);
  EXPECT_THROW(add(1, 4, 4), Error);
  EXPECT_THROW(add(1, 4, 18), Error);
  EXPECT_THROW(add(1, 4, 8, std::numeric_limits<float>::quiet_NaN()), Error);
  EXPECT_EQ(scheduler_->counts().waiting, 0);
  add(1, 4, 8);
  EXPECT_THROW(add(1, 4, 8), Error);
}

TEST_F(SchedulerTest, MisuseIsNamed) {
  make({});
  EXPECT_THROW(scheduler_->finish(1), Error);
  EXPECT_THROW(scheduler_->tokens(1), Error);
  add(1, 4, 8);
  const auto step = plan();
  EXPECT_THROW(scheduler_->complete(step.items[0], std::nullopt), Error);
  complete(step);
  EXPECT_THROW(scheduler_->complete(step.items[0], 7), Error);
}

}  // namespace
}  // namespace inflight
