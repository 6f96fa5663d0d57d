#pragma once

#include <map>
#include <random>
#include <utility>
#include <vector>

#include "tests/batcher/executor_fixture.h"

namespace inflight::testing {

inline const std::vector<TokenId> kPrompt = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};

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

/// Runs the same requests in different ways: nobody must see a difference in the answers.
class TranscriptTest : public ::testing::Test {
 protected:
  TranscriptTest() {
    register_fault_op();
    json plan = TinyNetwork().plan();
    plan["outputs"] = marked_output("mark", "active", "layers");
    json& prologue = plan["blocks"]["prologue"];
    prologue[0]["outputs"]["out"] = "untested";
    prologue.push_back(op("test.fault", {{"x", "untested"}}, {}, {{"out", "x"}}));
    write_engine(folder_.path(), plan);
    config_.num_threads = 1;
    config_.max_batch_size = 8;
    config_.max_num_tokens = 24;  // contexts come in chunks
    config_.kv_cache.max_tokens = 1024;
    config_.kv_cache.block_size = 8;
  }
  ~TranscriptTest() override { Fault::instance().hold = Fault::instance().slow = false; }

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
    for (int i = 0; i < 60'000 && (stats.kv_blocks_used > 0 || stats.active_requests > 0); ++i) {
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

  TemporaryFolder folder_;
  ExecutorConfig config_;
  ExecutorStats stats_;
  std::map<FinishReason, int> reasons_;
  int64_t preemptions_ = 0;
};

/// Requests of every kind: greedy and drawn, each rule on the logits, each way to end, each thing to return.
inline std::vector<Request> draw_requests(int count, unsigned seed) {
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
    if (chance(4)) sampling.prompt_ignore_length = 2;
    if (chance(4)) sampling.no_repeat_ngram_size = 2;
    if (chance(2)) request.end_id = token();
    if (chance(3)) request.stop_words = {{token()}, {token(), token()}};
    if (chance(4)) request.bad_words = {{token(), token()}, {token()}};
    requests.push_back(std::move(request));
  }
  return requests;
}

}  // namespace inflight::testing
