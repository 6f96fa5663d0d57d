#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "inflight_batcher/executor/kv_requests.h"
#include "tests/batcher/executor_transcripts.h"

namespace inflight {
namespace {

using testing::ask;
using testing::draw_requests;
using testing::kPrompt;
using testing::make_request;
using testing::TinyNetwork;
using testing::Transcripts;

/// What is right in the drafts that a request gets.
enum class Drafts { kRight, kWrong, kSomeRight, kRandom };

/// Requests with drafts against the same without: drafts without logits never change an answer.
class DraftsTest : public testing::TranscriptTest {
 protected:
  /// Drafts for each request from the answer of its first sequence, beyond its end in about half of them.
  std::vector<Request> with_drafts(std::vector<Request> requests, const Transcripts& answers, Drafts kind) {
    for (size_t i = 0; i < requests.size(); ++i) {
      const testing::Transcript& answer = answers.at({i + 1, 0});
      std::vector<TokenId> drafts = answer.tokens;
      if (answer.reason == FinishReason::kEndId) drafts.push_back(*requests[i].end_id);
      for (int more = 0; more < 5 * (static_cast<int>(random_() % 2)); ++more) drafts.push_back(token());
      for (size_t j = 0; j < drafts.size(); ++j) spoil(drafts[j], j, kind);
      requests[i].draft_tokens = drafts;
    }
    return requests;
  }

  void spoil(TokenId& draft, size_t index, Drafts kind) {
    const TokenId other = (draft + 1) % TinyNetwork::kVocabulary;
    if (kind == Drafts::kWrong && index == 0) draft = other;
    if (kind == Drafts::kSomeRight && random_() % 6 == 0) draft = other;
    if (kind == Drafts::kRandom) draft = token();
  }

  TokenId token() { return static_cast<TokenId>(random_() % TinyNetwork::kVocabulary); }

  void expect_drafts_change_nothing(const std::vector<Request>& requests) {
    const Transcripts expected = run(false, requests);
    for (const Drafts kind : {Drafts::kRight, Drafts::kWrong, Drafts::kSomeRight, Drafts::kRandom}) {
      for (const bool plan_ahead : {false, true}) {
        const Transcripts found = run(plan_ahead, with_drafts(requests, expected, kind));
        for (const auto& [key, transcript] : expected) {
          const std::string where = concat("request ", key.first, " sequence ", key.second, " drafts ",
                                           static_cast<int>(kind), plan_ahead ? " ahead" : "");
          EXPECT_EQ(transcript.tokens, found.at(key).tokens) << where;
          EXPECT_TRUE(transcript == found.at(key)) << where;
        }
        accepted_[kind] += stats_.accepted_draft_tokens;
        drafted_[kind] += stats_.draft_tokens;
        preemptions_ += stats_.preemptions;
      }
    }
  }

  std::mt19937 random_{3};
  std::map<Drafts, int64_t> accepted_, drafted_;
};

TEST_F(DraftsTest, AnswersAreTheSame) {
  for (unsigned seed = 1; seed <= 3; ++seed) expect_drafts_change_nothing(draw_requests(60, seed));
  EXPECT_GT(accepted_[Drafts::kRight], 1000);
  EXPECT_GT(accepted_[Drafts::kSomeRight], 300);
  EXPECT_LT(accepted_[Drafts::kSomeRight], drafted_[Drafts::kSomeRight]);
  EXPECT_LT(accepted_[Drafts::kRandom], drafted_[Drafts::kRandom] / 4);
}

TEST_F(DraftsTest, AnswersAreTheSameWhereBlocksAreScarce) {
  config_.kv_cache.max_tokens = 160;
  for (const CapacityPolicy policy : {CapacityPolicy::kGuaranteedNoEvict, CapacityPolicy::kMaxUtilization}) {
    config_.capacity_policy = policy;
    preemptions_ = 0;
    expect_drafts_change_nothing(draw_requests(40, 11));
    EXPECT_EQ(preemptions_ > 0, policy == CapacityPolicy::kMaxUtilization);
  }
}

TEST_F(DraftsTest, AnswersAreTheSameWithoutChunksAndReuse) {
  config_.enable_chunked_context = false;
  config_.kv_cache.enable_block_reuse = false;
  config_.max_num_tokens = 64;
  expect_drafts_change_nothing(draw_requests(40, 21));
}

TEST_F(DraftsTest, RightDraftsAreOneStep) {
  const auto executor = make(false);
  Request request = make_request(kPrompt, 9);
  const std::vector<TokenId> tokens = ask(*executor, request)->tokens();
  const ExecutorStats before = settled(*executor);
  request.draft_tokens = tokens;  // the ninth is cut: the last token is sampled
  const auto answer = ask(*executor, request);
  EXPECT_EQ(answer->tokens(), tokens);
  const Result last = answer->wait();
  EXPECT_EQ(last.tokens, tokens) << "a step is one result";
  EXPECT_EQ(last.perf.draft_tokens, 0) << "not asked for";
  const ExecutorStats after = settled(*executor);
  EXPECT_EQ(after.steps - before.steps, 1);
  EXPECT_EQ(after.draft_tokens, 8);
  EXPECT_EQ(after.accepted_draft_tokens, 8);
}

TEST_F(DraftsTest, MetricsCountWhatIsPartOfTheAnswer) {
  const auto executor = make(false);
  Request request = make_request(kPrompt, 9);
  request.output.perf_metrics = true;
  const std::vector<TokenId> tokens = ask(*executor, request)->tokens();
  request.draft_tokens = {tokens[0], tokens[1], tokens[2], (tokens[3] + 1) % TinyNetwork::kVocabulary, tokens[4]};
  Result last = ask(*executor, request)->wait();
  EXPECT_EQ(last.perf.draft_tokens, 5);
  EXPECT_EQ(last.perf.accepted_draft_tokens, 3);
  request.draft_tokens = tokens;
  request.stop_words = {{tokens[2], tokens[3]}};
  last = ask(*executor, request)->wait();
  EXPECT_EQ(last.finish_reason, FinishReason::kStopWords);
  EXPECT_EQ(last.num_generated_tokens, 4);
  EXPECT_EQ(last.perf.draft_tokens, 8);
  EXPECT_EQ(last.perf.accepted_draft_tokens, 4);
}

TEST_F(DraftsTest, AcceptedDraftsAreFoundInTheCacheAndOthersAreNot) {
  const auto executor = make(false);
  Request request = make_request(kPrompt, 30);
  const std::vector<TokenId> tokens = ask(*executor, request)->tokens();
  request.draft_tokens = tokens;
  for (int i = 10; i < 30; ++i) request.draft_tokens[i] = (tokens[i] + 1) % TinyNetwork::kVocabulary;
  request.max_tokens = 30;
  EXPECT_EQ(ask(*executor, request)->tokens(), tokens);
  const ExecutorStats before = settled(*executor);
  Request again = make_request(kPrompt, 1);
  again.input_ids.insert(again.input_ids.end(), request.draft_tokens.begin(), request.draft_tokens.end());
  ask(*executor, again)->wait();
  EXPECT_EQ(settled(*executor).tokens_reused - before.tokens_reused, static_cast<int64_t>(kPrompt.size()) + 10);
}

std::vector<double> softmax(const float* logits) {
  std::vector<double> out(logits, logits + TinyNetwork::kVocabulary);
  double sum = 0;
  for (double& value : out) sum += value = std::exp(value);
  for (double& value : out) value /= sum;
  return out;
}

TEST_F(DraftsTest, WithLogitsAThresholdDecides) {
  constexpr int kVocabulary = TinyNetwork::kVocabulary;
  constexpr float kThreshold = 0.4f;
  const auto executor = make(false);
  std::normal_distribution<float> normal;
  int accepted = 0, refused = 0;
  for (int round = 0; round < 60; ++round) {
    Request request = make_request(kPrompt, 8);
    request.output.generation_logits = request.output.perf_metrics = true;
    request.output.streaming = round % 2;
    request.sampling.top_p = 1.0f;
    request.sampling.seed = round;
    request.draft_acceptance_threshold = kThreshold;
    for (int i = 0; i < 5; ++i) request.draft_tokens.push_back(token());
    for (int i = 0; i < 5 * kVocabulary; ++i) request.draft_logits.push_back(normal(random_));
    testing::Transcript answer;
    std::atomic<bool> done{false};
    int metrics = 0;
    executor->submit(request, [&](Result&& result) {
      answer.take(result);
      metrics = result.perf.accepted_draft_tokens;
      done = result.request_final;
    });
    while (!done) std::this_thread::sleep_for(std::chrono::microseconds(100));
    ASSERT_EQ(answer.generation_logits.size(), answer.tokens.size() * kVocabulary);
    int leading = 0;
    while (leading < 5) {
      const TokenId draft = request.draft_tokens[leading];
      const double p = softmax(&answer.generation_logits[leading * kVocabulary])[draft];
      const double q = softmax(&request.draft_logits[leading * kVocabulary])[draft];
      ASSERT_EQ(answer.tokens[leading] == draft, p >= kThreshold * q) << "round " << round << " draft " << leading;
      if (p < kThreshold * q) break;
      ++leading;
    }
    EXPECT_EQ(metrics, leading);
    accepted += leading;
    refused += leading < 5;
  }
  EXPECT_GT(accepted, 20);
  EXPECT_GT(refused, 20);
}

// Rules that look at what was generated, stop words, minimum lengths, draws and their decay go on over the parts.
TEST_F(DraftsTest, AnAnswerInPartsIsTheOneInAPiece) {
  const auto executor = make(false);
  for (Request request : draw_requests(40, 41)) {
    request.output = {};
    request.sampling.num_return_sequences = 1;
    if (request.sampling.seed % 3 == 0) request.sampling.top_p_decay = 0.7f;
    const Result whole = ask(*executor, request)->wait();
    std::vector<TokenId> tokens;
    FinishReason reason = FinishReason::kNotFinished;
    while (reason == FinishReason::kNotFinished) {
      Request part = request;
      part.input_ids.insert(part.input_ids.end(), tokens.begin(), tokens.end());
      part.continued_tokens = static_cast<int>(tokens.size());
      part.max_tokens = request.max_tokens - part.continued_tokens;
      part.stop_after_drafts = true;
      for (size_t i = tokens.size(); i < std::min(tokens.size() + 3, whole.tokens.size()); ++i)
        part.draft_tokens.push_back(random_() % 4 == 0 ? token() : whole.tokens[i]);
      const Result result = ask(*executor, part)->wait();
      ASSERT_LE(result.tokens.size(), part.draft_tokens.size() + 1);
      tokens.insert(tokens.end(), result.tokens.begin(), result.tokens.end());
      reason = result.finish_reason;
    }
    EXPECT_EQ(tokens, whole.tokens);
    EXPECT_EQ(reason, whole.finish_reason);
  }
}

TEST_F(DraftsTest, WhatPartsBeforeGeneratedIsRetainedAsSuch) {
  Request request = make_request(kPrompt, 40);
  request.retention.ranges = {{0, {}, {80, {}}}};
  request.retention.decode = {10, {}};
  request.continued_tokens = 4;
  const auto policy = kv_policy_of(request, TinyNetwork::kVocabulary);
  EXPECT_EQ(policy->retention_at(7).priority, 80);
  EXPECT_EQ(policy->retention_at(8).priority, 10);
  EXPECT_EQ(policy->retention_at(12).priority, 10);
}

TEST_F(DraftsTest, BadDraftsAreRefused) {
  const auto executor = make(false);
  const auto refuse = [&](const std::vector<std::string>& parts, const std::function<void(Request&)>& change) {
    Request request = make_request(kPrompt);
    request.draft_tokens = {1, 2};
    change(request);
    testing::expect_error(ErrorCode::kInvalidArgument, parts, [&] { executor->submit(request, [](Result&&) {}); });
  };
  refuse({"draft token 23", "23 tokens"}, [](Request& it) { it.draft_tokens[1] = 23; });
  refuse({"draft_logits has 45 values", "2 draft tokens x 23"}, [](Request& it) { it.draft_logits.resize(45); });
  refuse({"draft_logits has 23 values", "0 draft tokens"}, [](Request& it) {
    it.draft_tokens.clear();
    it.draft_logits.resize(23);
  });
  for (const float threshold : {0.0f, -1.0f, 1.5f, NAN})
    refuse({"draft_acceptance_threshold", "more than 0 and at most 1"},
           [&](Request& it) { it.draft_acceptance_threshold = threshold; });
  refuse({"draft_acceptance_threshold is 0.5 without"}, [](Request& it) {
    it.draft_tokens.clear();
    it.draft_acceptance_threshold = 0.5f;
  });
}

}  // namespace
}  // namespace inflight
