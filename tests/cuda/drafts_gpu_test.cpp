#include <gtest/gtest.h>

#include "inflight_batcher/executor/request_checks.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cuda/cuda.h"
#include "tests/batcher/executor_fixture.h"
#include "tests/cuda/gpu_network.h"

namespace inflight {
namespace {

using testing::Answer;
using testing::ask;
using testing::GpuNetwork;

constexpr int kVocabulary = GpuNetwork::kVocabulary;
constexpr int kDrafts = 10;

ExecutorConfig gpu_config(bool plan_ahead) {
  ExecutorConfig config;
  config.device = "cuda";
  config.max_num_tokens = 2048;
  config.max_batch_size = 64;
  config.plan_ahead = plan_ahead;
  config.kv_cache.max_tokens = 64 * 640;
  return config;
}

/// Kinds in turn: greedy with rules on the logits, and drawn.
Request request_of(int index) {
  Request request;
  for (int i = 0; i < 20 + 9 * index % 150; ++i)
    request.input_ids.push_back((i * i * 7 + i * 31 + index) % kVocabulary);
  request.max_tokens = 24;
  request.output.generation_logits = request.output.perf_metrics = true;
  SamplingConfig& sampling = request.sampling;
  sampling.seed = 5 + index;
  if (index % 2) sampling.top_k = 30;
  if (index % 3 == 1) sampling.repetition_penalty = 1.4f;
  if (index % 3 == 2) sampling.frequency_penalty = 0.7f;
  if (index % 5 == 4) sampling.no_repeat_ngram_size = 2;
  return request;
}

class DraftsGpuTest : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device";
    GpuNetwork::write(folder_.path());
  }

  static std::vector<Result> run(Executor& executor, const std::vector<Request>& requests) {
    std::vector<std::shared_ptr<Answer>> answers;
    for (const Request& request : requests) answers.push_back(ask(executor, request));
    std::vector<Result> results;
    for (const auto& answer : answers) results.push_back(answer->wait());
    for (const Result& result : results) EXPECT_FALSE(result.failed) << result.error;
    return results;
  }

  /// The CPU's token for each row of logits that came back, with the answer so far as its history.
  static std::vector<TokenId> chosen_by_cpu(const Request& request, const Result& result) {
    RequestState state;
    state.request = request;
    std::vector<TokenId> history = request.input_ids;
    history.insert(history.end(), result.tokens.begin(), result.tokens.end());
    std::vector<SamplingRow> rows;
    for (size_t i = 0; i < result.tokens.size(); ++i) {
      SamplingRow& row = rows.emplace_back(sampling_row(state, 0));
      row.history = std::span(history).first(request.input_ids.size() + i);
      const bool verifies =
          i < request.draft_tokens.size() && i <= static_cast<size_t>(result.perf.accepted_draft_tokens);
      if (request.draft_logits.empty() || !verifies) continue;
      row.draft_logits = std::span(request.draft_logits).subspan(i * kVocabulary, kVocabulary);
      row.draft_token = request.draft_tokens[i];
    }
    std::vector<float> logits = result.generation_logits, log_probs(rows.size());
    std::vector<TokenId> tokens(rows.size());
    cpu::CpuContext context(2);
    const TensorView view(logits.data(), DType::kFloat32, {static_cast<int64_t>(rows.size()), kVocabulary});
    cpu::op_table().sample({view, rows, tokens, log_probs}, context);
    return tokens;
  }

  /// Each answer is what its logits say, and the leading drafts in it were accepted.
  static int expect_consistent(const std::vector<Request>& requests, const std::vector<Result>& results) {
    int accepted = 0;
    for (size_t i = 0; i < requests.size(); ++i) {
      const std::vector<TokenId>& drafts = requests[i].draft_tokens;
      const Result& result = results[i];
      EXPECT_EQ(result.tokens.size(), 24u);
      EXPECT_EQ(result.generation_logits.size(), result.tokens.size() * kVocabulary);
      EXPECT_EQ(result.tokens, chosen_by_cpu(requests[i], result)) << "request " << i;
      const auto differ = std::mismatch(drafts.begin(), drafts.end(), result.tokens.begin()).first;
      EXPECT_EQ(result.perf.accepted_draft_tokens, differ - drafts.begin()) << "request " << i;
      EXPECT_EQ(result.perf.draft_tokens, static_cast<int>(drafts.size())) << "request " << i;
      accepted += result.perf.accepted_draft_tokens;
    }
    return accepted;
  }

  testing::TemporaryFolder folder_;
};

// 64 x 11 rows: more than sequences, and than one slice of logits.
TEST_P(DraftsGpuTest, AnswersAreWhatTheirLogitsSay) {
  Executor executor(folder_.path().string(), gpu_config(GetParam()));
  std::vector<Request> requests;
  for (int i = 0; i < 64; ++i) requests.push_back(request_of(i));
  const std::vector<Result> plain = run(executor, requests);
  for (int i = 0; i < 64; ++i) {
    requests[i].draft_tokens.assign(plain[i].tokens.begin(), plain[i].tokens.begin() + kDrafts);
    if (i % 4 == 3) requests[i].draft_tokens[i % kDrafts] = (requests[i].draft_tokens[i % kDrafts] + 1) % kVocabulary;
  }
  const int64_t steps = executor.stats().steps;
  EXPECT_GT(expect_consistent(requests, run(executor, requests)), 64 * kDrafts / 2);
  EXPECT_LT(executor.stats().steps - steps, steps);
}

TEST_P(DraftsGpuTest, DraftLogitsAreHeard) {
  Executor executor(folder_.path().string(), gpu_config(GetParam()));
  std::vector<Request> requests;
  for (int i = 0; i < 16; ++i) {
    Request& request = requests.emplace_back(request_of(2 * i + 1));
    const std::vector<TokenId> tokens = run(executor, {request})[0].tokens;
    request.draft_tokens.assign(tokens.begin(), tokens.begin() + kDrafts);
    for (int row = 0; row < kDrafts; ++row)
      for (int token = 0; token < kVocabulary; ++token)
        request.draft_logits.push_back(token == tokens[row] ? 1.5f
                                                            : static_cast<float>((token * 37 + row) % 100) / 100);
  }
  const int accepted = expect_consistent(requests, run(executor, requests));
  EXPECT_GT(accepted, 0);
  EXPECT_LT(accepted, 16 * kDrafts);
}

INSTANTIATE_TEST_SUITE_P(Ahead, DraftsGpuTest, ::testing::Bool());

}  // namespace
}  // namespace inflight
