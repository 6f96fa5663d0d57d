#include <gtest/gtest.h>

#include <random>

#include "tests/batcher/executor_fixture.h"

namespace inflight {
namespace {

using testing::ask;
using testing::Fault;
using testing::make_request;
using testing::TinyNetwork;

const std::vector<TokenId> kPrompt = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};

/// All that came back for one sequence, put together.
struct Transcript {
  std::vector<TokenId> tokens;
  std::vector<float> log_probs, context_logits, generation_logits;
  float cum_log_prob = 0;
  std::map<std::string, std::vector<float>> marked;
  FinishReason reason = FinishReason::kNotFinished;

  void take(const Result& result) {
    const auto append = [](auto& all, const auto& part) { all.insert(all.end(), part.begin(), part.end()); };
    append(tokens, result.tokens);
    append(log_probs, result.log_probs);
    append(context_logits, result.context_logits);
    append(generation_logits, result.generation_logits);
    cum_log_prob = result.cum_log_prob;
    reason = result.finish_reason;
    for (const auto& [name, output] : result.additional_outputs) append(marked[name], output.values);
  }
  bool operator==(const Transcript&) const = default;
};

/// By request and sequence.
using Transcripts = std::map<std::pair<RequestId, int>, Transcript>;

/// Steps planned ahead against steps planned one by one: nobody must see a difference in the answers.
class PlanAheadTest : public ::testing::Test {
 protected:
  PlanAheadTest() {
    testing::register_fault_op();
    testing::json plan = TinyNetwork().plan();
    plan["outputs"] = testing::marked_output("mark", "active", "layers");
    testing::json& prologue = plan["blocks"]["prologue"];
    prologue[0]["outputs"]["out"] = "untested";
    prologue.push_back(testing::op("test.fault", {{"x", "untested"}}, {}, {{"out", "x"}}));
    testing::write_engine(folder_.path(), plan);
    config_.num_threads = 1;
    config_.max_batch_size = 8;
    config_.max_num_tokens = 24;  // contexts come in chunks
    config_.kv_cache.max_tokens = 1024;
    config_.kv_cache.block_size = 8;
  }
  ~PlanAheadTest() override { Fault::instance().hold = false; }

  std::unique_ptr<Executor> make(bool plan_ahead) {
    config_.plan_ahead = plan_ahead;
    return std::make_unique<Executor>(folder_.path().string(), config_);
  }

  Transcripts run(bool plan_ahead, const std::vector<Request>& requests) {
    Transcripts transcripts;
    {
      const auto executor = make(plan_ahead);
      std::atomic<size_t> left{requests.size()};
      Fault::instance().hold = true;  // so that all are there when the first step ends, however fast it is
      for (const Request& request : requests) {
        executor->submit(request, [&](Result&& result) {
          EXPECT_FALSE(result.failed) << result.error;
          transcripts[{result.request_id, result.sequence_index}].take(result);
          left -= result.request_final;
        });
      }
      Fault::instance().hold = false;
      const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
      while (left > 0 && std::chrono::steady_clock::now() < deadline)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      EXPECT_EQ(left, 0u);
      stats_ = settled(*executor);
    }
    return transcripts;
  }

  /// The statistics when the last step has ended.
  static ExecutorStats settled(const Executor& executor) {
    ExecutorStats stats = executor.stats();
    for (int i = 0; i < 10000 && (stats.kv_blocks_used > 0 || stats.active_requests > 0); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      stats = executor.stats();
    }
    EXPECT_EQ(stats.kv_blocks_used, 0);
    return stats;
  }

  void expect_same(const std::vector<Request>& requests) {
    const Transcripts one_by_one = run(false, requests);
    const ExecutorStats before = stats_;
    const Transcripts ahead = run(true, requests);
    ASSERT_EQ(one_by_one.size(), ahead.size());
    for (const auto& [key, transcript] : one_by_one) {
      const Transcript& other = ahead.at(key);
      EXPECT_EQ(transcript.tokens, other.tokens) << "request " << key.first << " sequence " << key.second;
      EXPECT_TRUE(transcript == other) << "request " << key.first << " sequence " << key.second;
      ++reasons_[transcript.reason];
    }
    EXPECT_EQ(before.tokens_generated, stats_.tokens_generated);
    EXPECT_EQ(before.requests_completed, stats_.requests_completed);
    preemptions_ += stats_.preemptions;
  }

  testing::TemporaryFolder folder_;
  ExecutorConfig config_;
  ExecutorStats stats_;
  std::map<FinishReason, int> reasons_;
  int64_t preemptions_ = 0;
};

/// Requests of every kind: greedy and drawn, each rule on the logits, each way to end, each thing to return.
std::vector<Request> draw_requests(int count, unsigned seed) {
  std::mt19937 random(seed);
  const auto chance = [&](int one_in) { return random() % one_in == 0; };
  const auto token = [&] { return static_cast<TokenId>(random() % TinyNetwork::kVocabulary); };
  std::vector<Request> requests;
  for (int i = 0; i < count; ++i) {
    Request request = make_request(kPrompt, 1 + static_cast<int>(random() % 40));
    request.input_ids.resize(1 + random() % kPrompt.size());
    for (int more = static_cast<int>(random() % 40); more > 0; --more) request.input_ids.push_back(token());
    request.priority = static_cast<float>(random() % 3) / 2.0f;
    request.output.streaming = chance(2);
    request.output.log_probs = chance(3);
    request.output.context_logits = chance(5);
    request.output.generation_logits = chance(5);
    if (chance(5)) request.output.additional_outputs = {"mark"};
    SamplingConfig& sampling = request.sampling;
    if (!chance(3)) sampling.top_p = 0.95f;
    sampling.temperature = 1.5f;
    sampling.seed = random();
    sampling.min_tokens = static_cast<int>(random() % 12);
    if (chance(4)) sampling.num_return_sequences = 3;
    if (chance(4)) sampling.repetition_penalty = 1.3f;
    if (chance(4)) sampling.presence_penalty = sampling.frequency_penalty = 0.5f;
    if (chance(4)) sampling.no_repeat_ngram_size = 2;
    if (chance(2)) request.end_id = token();
    if (chance(3)) request.stop_words = {{token()}, {token(), token()}};
    if (chance(4)) request.bad_words = {{token(), token()}, {token()}};
    requests.push_back(std::move(request));
  }
  return requests;
}

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
    for (int i = 0; i < 5000 && executor->stats().steps < wanted; ++i)
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
