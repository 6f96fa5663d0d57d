#include <gtest/gtest.h>

#include <random>

#include "tests/batcher/executor_transcripts.h"

namespace inflight {
namespace {

using testing::ask;
using testing::draw_requests;
using testing::Fault;
using testing::kPrompt;
using testing::make_request;
using testing::Transcripts;

class PlanAheadTest : public testing::TranscriptTest {};

TEST_F(PlanAheadTest, AnswersAreTheSame) {
  for (unsigned seed = 1; seed <= 4; ++seed) expect_same(draw_requests(60, seed));
  for (const FinishReason reason : {FinishReason::kEndId, FinishReason::kStopWords, FinishReason::kLength})
    EXPECT_GT(reasons_[reason], 10) << name_of(reason);
}

TEST_F(PlanAheadTest, AnswersAreTheSameWhereBlocksAreScarce) {
  config_.kv_cache.max_tokens = 160;
  for (const CapacityPolicy policy : {CapacityPolicy::kGuaranteedNoEvict, CapacityPolicy::kMaxUtilization}) {
    config_.capacity_policy = policy;
    preemptions_ = 0;
    for (unsigned seed = 11; seed <= 14; ++seed) expect_same(draw_requests(40, seed));
    EXPECT_EQ(preemptions_ > 0, policy == CapacityPolicy::kMaxUtilization);
  }
}

TEST_F(PlanAheadTest, AnswersAreTheSameWithoutChunksAndReuse) {
  config_.enable_chunked_context = false;
  config_.kv_cache.enable_block_reuse = false;
  config_.max_num_tokens = 64;
  expect_same(draw_requests(60, 21));
}

TEST_F(PlanAheadTest, ASecondTurnFindsAsMuchInTheCache) {
  std::vector<int64_t> reused;
  for (const bool plan_ahead : {false, true}) {
    const auto executor = make(plan_ahead);
    Request first = make_request(kPrompt, 40);
    first.sampling.top_p = 1.0f;
    first.sampling.min_tokens = 20;
    first.end_id = 5;
    Request second = first;
    for (const TokenId token : ask(*executor, first)->tokens()) second.input_ids.push_back(token);
    settled(*executor);
    ask(*executor, second)->wait();
    reused.push_back(settled(*executor).tokens_reused);
  }
  EXPECT_GT(reused[0], 30);
  EXPECT_EQ(reused[0], reused[1]);
}

TEST_F(PlanAheadTest, AStepIsSubmittedWhileTheOneBeforeRuns) {
  for (const bool plan_ahead : {false, true}) {
    const auto executor = make(plan_ahead);
    Fault::instance().hold = true;
    const auto answer = ask(*executor, make_request(kPrompt, 5));
    const int64_t wanted = plan_ahead ? 2 : 1;
    for (int i = 0; i < 60'000 && executor->stats().steps < wanted; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_EQ(executor->stats().steps, wanted);
    Fault::instance().hold = false;
    EXPECT_EQ(answer->tokens().size(), 5u);
    EXPECT_EQ(settled(*executor).steps, 5);  // the last token's position is never computed
  }
}

TEST_F(PlanAheadTest, AnArrivalJoinsTheNextPlan) {
  const auto executor = make(true);
  std::atomic<int> first_tokens{0}, seen{-1};
  std::atomic<bool> done{false};
  Fault::instance().hold = true;
  executor->submit(make_request(kPrompt, 30), [&](Result&& result) {
    ++first_tokens;
    if (result.request_final) done = true;
  });
  while (executor->stats().steps < 2) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  const auto answer = std::make_shared<testing::Answer>();
  executor->submit(make_request({4, 8, 15}, 1), [&, answer](Result&& result) {
    seen = first_tokens.load();
    answer->take(std::move(result));
  });
  Fault::instance().hold = false;
  answer->wait();
  EXPECT_LE(seen, 3);  // two steps were under way, the third one has both
  while (!done) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

TEST_F(PlanAheadTest, WhatEndsEarlyWastesOneRowThatNobodySees) {
  const auto executor = make(true);
  Request request = make_request(kPrompt, 30);
  const std::vector<TokenId> tokens = ask(*executor, request)->tokens();
  const ExecutorStats before = settled(*executor);
  request.end_id = tokens[9];
  const size_t length = std::find(tokens.begin(), tokens.end(), tokens[9]) - tokens.begin();
  ASSERT_GT(length, 0u);
  const auto answer = ask(*executor, request);
  EXPECT_EQ(answer->tokens(), std::vector<TokenId>(tokens.begin(), tokens.begin() + length));
  EXPECT_EQ(static_cast<int>(answer->wait().finish_reason), static_cast<int>(FinishReason::kEndId));
  const ExecutorStats after = settled(*executor);
  EXPECT_EQ(after.tokens_generated - before.tokens_generated, static_cast<int64_t>(length + 1));
  EXPECT_EQ(after.steps - before.steps, static_cast<int64_t>(length + 2));
}

TEST_F(PlanAheadTest, CancelsAndDeadlinesInFlightLeaveTheOthersAsTheyAre) {
  config_.kv_cache.max_tokens = 160;
  config_.capacity_policy = CapacityPolicy::kMaxUtilization;
  std::vector<Request> requests = draw_requests(24, 31);
  const Transcripts expected = run(false, requests);
  for (int round = 0; round < 5; ++round) {
    const auto executor = make(true);
    std::mt19937 random(round);
    Transcripts found;
    std::mutex mutex;
    std::set<RequestId> cut;
    std::atomic<size_t> left{requests.size()};
    std::vector<RequestId> ids;
    for (size_t i = 0; i < requests.size(); ++i) {
      Request request = requests[i];
      if (i % 5 == 0) request.timeout = std::chrono::microseconds(1 + random() % 3000);
      ids.push_back(executor->submit(request, [&](Result&& result) {
        std::lock_guard lock(mutex);
        if (result.failed || result.finish_reason == FinishReason::kTimedOut) cut.insert(result.request_id);
        found[{result.request_id, result.sequence_index}].take(result);
        left -= result.request_final;
      }));
      if (i % 3 == 0) executor->cancel(ids[random() % ids.size()]);
    }
    while (left > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    settled(*executor);
    for (const auto& [key, transcript] : found)
      EXPECT_TRUE(cut.contains(key.first) || transcript == expected.at(key)) << "request " << key.first;
    EXPECT_LT(cut.size(), requests.size());
  }
}

}  // namespace
}  // namespace inflight
