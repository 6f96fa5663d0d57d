#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "inflight_batcher/engine/engine.h"
#include "kernels/cuda/cuda.h"
#include "tests/batcher/executor_fixture.h"
#include "tests/cuda/gpu_network.h"

namespace inflight {
namespace {

using testing::Answer;
using testing::ask;
using testing::expect_error;
using testing::GpuNetwork;
using testing::json;

constexpr int kVocabulary = GpuNetwork::kVocabulary;

ExecutorConfig config_for(const std::string& device) {
  ExecutorConfig config;
  config.device = device;
  config.num_threads = 4;
  config.max_num_tokens = 640;
  config.max_batch_size = 64;
  config.kv_cache.max_tokens = 64 * 640;
  return config;
}

std::vector<TokenId> prompt_of(int count, int salt) {
  std::vector<TokenId> prompt(count);
  for (int i = 0; i < count; ++i) prompt[i] = (i * i * 7 + i * 31 + salt * 101) % kVocabulary;
  return prompt;
}

Request request_of(int count, int salt, int max_tokens = 24) {
  Request request;
  request.input_ids = prompt_of(count, salt);
  request.max_tokens = max_tokens;
  request.output.log_probs = true;
  return request;
}

/// ||out - reference|| / ||reference||.
double relative_error(const std::vector<float>& out, const std::vector<float>& reference) {
  EXPECT_EQ(out.size(), reference.size());
  double difference = 0, size = 0;
  for (size_t i = 0; i < std::min(out.size(), reference.size()); ++i) {
    difference += std::pow(static_cast<double>(out[i]) - reference[i], 2);
    size += std::pow(static_cast<double>(reference[i]), 2);
  }
  return std::sqrt(difference / size);
}

struct Tokens {
  std::vector<TokenId> ids;
  std::vector<float> log_probs;
};

/// The same tokens with the same log probabilities, bit for bit.
void expect_same(const Tokens& out, const Tokens& expected, const std::string& what) {
  EXPECT_EQ(out.ids, expected.ids) << what;
  for (size_t i = 0; i < std::min(out.log_probs.size(), expected.log_probs.size()); ++i)
    ASSERT_EQ(out.log_probs[i], expected.log_probs[i]) << what << ", token " << i;
  ASSERT_EQ(out.log_probs.size(), expected.log_probs.size()) << what;
}

void expect_same(const std::vector<Tokens>& out, const std::vector<Tokens>& expected, const std::string& what) {
  ASSERT_EQ(out.size(), expected.size());
  for (size_t i = 0; i < out.size(); ++i) expect_same(out[i], expected[i], concat(what, ", request ", i));
}

class EngineGpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device";
    GpuNetwork::write(folder_.path());
  }

  std::unique_ptr<Executor> executor(const ExecutorConfig& config) {
    return std::make_unique<Executor>(folder_.path().string(), config);
  }

  /// All requests at once.
  static std::vector<Tokens> run(Executor& executor, const std::vector<Request>& requests) {
    std::vector<std::shared_ptr<Answer>> answers;
    for (const Request& request : requests) answers.push_back(ask(executor, request));
    std::vector<Tokens> tokens;
    for (const auto& answer : answers) {
      const Result result = answer->wait();
      EXPECT_FALSE(result.failed) << result.error;
      tokens.push_back({result.tokens, result.log_probs});
    }
    return tokens;
  }

  testing::TemporaryFolder folder_;
};

Step prompt_step(int count, int rows) {
  Step step;
  step.token_ids = prompt_of(count, 3);
  step.positions.resize(count);
  std::iota(step.positions.begin(), step.positions.end(), 0);
  step.token_sequences.assign(count, 0);
  step.query_offsets = {0, count};
  step.context_lengths = {count};
  step.slots = {2};
  step.table_width = (count + 31) / 32;
  step.block_tables.resize(step.table_width);
  std::iota(step.block_tables.rbegin(), step.block_tables.rend(), 0);
  step.max_query_length = step.max_context_length = count;
  SamplingRow row;
  row.temperature = 0;
  row.history = step.token_ids;
  row.prompt_length = count;
  step.sampling = {row};
  for (int i = 0; i < rows; ++i) step.logits_rows.push_back(count - 1 - i);
  step.return_logits.assign(rows, 1);
  return step;
}

TEST_F(EngineGpuTest, LogitsAndMarkedTensorsAreThoseOfTheCpu) {
  ExecutorConfig on_cpu = config_for("cpu"), on_gpu = config_for("cuda");
  on_cpu.kv_cache.block_size = on_gpu.kv_cache.block_size = 32;
  Engine cpu(folder_.path(), on_cpu), gpu(folder_.path(), on_gpu);
  EXPECT_EQ(gpu.device(), "cuda");
  EXPECT_EQ(gpu.kv_bytes_per_token() * 2, cpu.kv_bytes_per_token());
  EXPECT_LT(gpu.weight_bytes(), cpu.weight_bytes()) << "a tied weight is there once";
  for (const int count : {1, 5, 33, 64, 200, 600}) {
    Step expected = prompt_step(count, std::min(count, 400)), step = expected;
    step.return_captures = expected.return_captures = true;
    step.sampling[0].history = step.token_ids;
    cpu.submit(expected);
    cpu.wait(expected);
    gpu.submit(step);
    gpu.wait(step);
    EXPECT_LT(relative_error(step.logits, expected.logits), 2e-2) << count;
    ASSERT_EQ(step.captures.size(), static_cast<size_t>(GpuNetwork::kLayers));
    for (const auto& [name, values] : expected.captures)
      EXPECT_LT(relative_error(step.captures.at(name), values), 2e-2) << name << " of " << count;
    const float* first = step.logits.data();
    EXPECT_EQ(step.tokens[0], std::max_element(first, first + kVocabulary) - first);
  }
}

TEST_F(EngineGpuTest, GreedyTokensFollowTheCpuWhereItIsSure) {
  const auto cpu = executor(config_for("cpu")), gpu = executor(config_for("cuda"));
  int compared = 0;
  for (int salt = 0; salt < 6; ++salt) {
    Request request = request_of(20 + 37 * salt, salt);
    request.output.generation_logits = true;
    const Result expected = ask(*cpu, request)->wait(), result = ask(*gpu, request)->wait();
    ASSERT_FALSE(result.failed) << result.error;
    std::vector<float> all_expected, all;
    for (size_t i = 0; i < expected.tokens.size(); ++i) {
      std::vector<float> row(expected.generation_logits.begin() + i * kVocabulary,
                             expected.generation_logits.begin() + (i + 1) * kVocabulary);
      const std::vector<float> got(result.generation_logits.begin() + i * kVocabulary,
                                   result.generation_logits.begin() + (i + 1) * kVocabulary);
      all_expected.insert(all_expected.end(), row.begin(), row.end());
      all.insert(all.end(), got.begin(), got.end());
      float error = 0;
      for (int j = 0; j < kVocabulary; ++j) error = std::max(error, std::abs(got[j] - row[j]));
      std::nth_element(row.begin(), row.begin() + 1, row.end(), std::greater<>());
      if (row[0] - row[1] > 2 * error) {
        EXPECT_EQ(result.tokens[i], expected.tokens[i]) << "token " << i;
      }
      ++compared;
      if (result.tokens[i] != expected.tokens[i]) break;  // from here on they tell different stories
    }
    EXPECT_LT(relative_error(all, all_expected), 2e-2) << salt;
  }
  EXPECT_GT(compared, 30);
}

// Returned logits keep a step from being replayed.
TEST_F(EngineGpuTest, ReplayedStepsAreThoseThatRunOpByOp) {
  ExecutorConfig config = config_for("cuda");
  config.batch_invariant = true;  // requests meet in other company from run to run
  const auto gpu = executor(config);
  for (const int batch : {1, 3, 64}) {
    std::vector<Request> replayed;
    for (int i = 0; i < batch; ++i) replayed.push_back(request_of(10 + 5 * i, i));
    std::vector<Request> eager = replayed;
    for (Request& request : eager) request.output.generation_logits = true;
    const std::vector<Tokens> expected = run(*gpu, eager);
    expect_same(run(*gpu, replayed), expected, concat("batch of ", batch));
    EXPECT_EQ(expected[0].ids.size(), 24u);
  }
}

std::vector<Request> varied_requests(int count) {
  std::vector<Request> requests;
  for (int i = 0; i < count; ++i) {
    Request request = request_of(3 + 11 * i % 90, i, 10 + i % 20);
    SamplingConfig& sampling = request.sampling;
    sampling.seed = 17 + i;
    sampling.temperature = 0.9f;
    if (i % 3 == 1) sampling.top_p = 0.9f;
    if (i % 3 == 2) sampling.top_k = 40;
    if (i % 4 == 1) sampling.repetition_penalty = 1.3f;
    if (i % 4 == 2) sampling.frequency_penalty = 0.5f;
    if (i % 4 == 3) sampling.no_repeat_ngram_size = 2;
    if (i % 5 == 2) request.bad_words = {{7}, {8, 9}};
    requests.push_back(request);
  }
  return requests;
}

TEST_F(EngineGpuTest, PlanningAheadChangesNoToken) {
  ExecutorConfig config = config_for("cuda");
  config.batch_invariant = true;  // the two meet in different company
  config.plan_ahead = false;
  const std::vector<Tokens> expected = run(*executor(config), varied_requests(24));
  config.plan_ahead = true;
  expect_same(run(*executor(config), varied_requests(24)), expected, "ahead");
}

TEST_F(EngineGpuTest, ReusedPrefixesAreInTheHistory) {
  ExecutorConfig config = config_for("cuda");
  config.batch_invariant = true;
  std::vector<Request> requests;
  for (int i = 0; i < 3; ++i) {
    requests.push_back(request_of(200, 5));
    requests.back().sampling.repetition_penalty = 1.5f;
    requests.back().sampling.top_k = i * 20;
  }
  config.kv_cache.enable_block_reuse = false;
  std::vector<Tokens> expected;
  {
    const auto fresh = executor(config);
    for (const Request& request : requests) expected.push_back(run(*fresh, {request})[0]);
  }
  config.kv_cache.enable_block_reuse = true;
  const auto reusing = executor(config);
  for (size_t i = 0; i < requests.size(); ++i) {
    // Other sequences pass through the slot meanwhile.
    run(*reusing, {request_of(150, 40 + static_cast<int>(i))});
    EXPECT_EQ(run(*reusing, {requests[i]})[0].ids, expected[i].ids) << i;
  }
  EXPECT_GT(reusing->stats().tokens_reused, 300);
}

TEST_F(EngineGpuTest, BatchInvariantTokensAreTheSameAloneAndInCompany) {
  for (const bool reuse : {false, true}) {
    ExecutorConfig config = config_for("cuda");
    config.batch_invariant = true;
    config.kv_cache.enable_block_reuse = reuse;
    const auto gpu = executor(config);
    const std::vector<Request> requests = varied_requests(64);
    const std::vector<Tokens> together = run(*gpu, requests);
    for (const size_t i : {0, 1, 2, 3, 17, 42, 63})
      expect_same(run(*gpu, {requests[i]})[0], together[i], concat(reuse ? "reuse, " : "", "request ", i));
  }
}

TEST_F(EngineGpuTest, BiasesAndManyWordsTakeTheirOwnWay) {
  const auto cpu = executor(config_for("cpu")), gpu = executor(config_for("cuda"));
  Request request = request_of(12, 1, 8);
  request.embedding_bias.assign(kVocabulary, 0.0f);
  request.embedding_bias[77] = 100.0f;
  EXPECT_EQ(run(*gpu, {request})[0].ids, std::vector<TokenId>(8, 77));
  request.embedding_bias.clear();
  const std::vector<TokenId> plain = run(*gpu, {request})[0].ids;
  for (int i = 0; i < 70000; ++i) request.bad_words.push_back({static_cast<TokenId>(i % 400)});
  const std::vector<TokenId> banned = run(*gpu, {request})[0].ids;
  for (const TokenId token : banned) EXPECT_GE(token, 400);
  request.bad_words.clear();
  EXPECT_EQ(run(*gpu, {request})[0].ids, plain);
}

TEST_F(EngineGpuTest, AStepThatFailsLeavesTheEngineAlive) {
  ExecutorConfig config = config_for("cuda");
  config.kv_cache.block_size = 32;
  Engine engine(folder_.path(), config);
  Step good = prompt_step(40, 1);
  good.sampling[0].history = good.token_ids;
  engine.submit(good);
  engine.wait(good);
  const std::vector<float> expected = good.logits;

  Step bad = prompt_step(40, 1);
  bad.sampling[0].history = bad.token_ids;
  bad.sampling[0].temperature = -1.0f;
  Step behind = prompt_step(40, 1);
  behind.sampling[0].history = behind.token_ids;
  engine.submit(bad);
  engine.submit(behind);
  expect_error(ErrorCode::kInvalidArgument, {"temperature is -1"}, [&] { engine.wait(bad); });
  EXPECT_THROW(engine.wait(behind), Error) << "it may build on the failed one";
  engine.recover();
  Step again = prompt_step(40, 1);
  again.sampling[0].history = again.token_ids;
  engine.submit(again);
  engine.wait(again);
  EXPECT_EQ(again.logits, expected);
}

TEST_F(EngineGpuTest, RandomWeightsNeedNoCheckpoint) {
  std::filesystem::remove(folder_.path() / "model.safetensors");
  ExecutorConfig config = config_for("cuda");
  config.random_weights = true;
  config.kv_cache.max_tokens.reset();
  config.kv_cache.free_memory_fraction = 0.1;
  const Engine engine(folder_.path(), config);
  EXPECT_GT(engine.num_blocks() * 64LL * engine.kv_bytes_per_token(), 1LL << 30);
  for (const char* part : {"weights:", "KV cache:", "graphs: ", "loaded in"})
    EXPECT_NE(engine.load_report().find(part), std::string::npos) << engine.load_report();
  const auto gpu = executor(config);
  const std::vector<Tokens> tokens = run(*gpu, {request_of(50, 1)});
  EXPECT_EQ(tokens[0].ids.size(), 24u);
  for (const float log_prob : tokens[0].log_probs) EXPECT_TRUE(std::isfinite(log_prob));
}

// Beams side by side with others and planned ahead: alone, where nothing is ahead of anything, they are the same.
TEST_F(EngineGpuTest, BeamsAreTheSameAloneAndInCompany) {
  ExecutorConfig config = config_for("cuda");
  config.max_beam_width = 4;
  config.batch_invariant = true;
  const std::unique_ptr<Executor> engine = executor(config);
  std::vector<Request> requests;
  for (int i = 0; i < 12; ++i) {
    Request request;
    request.input_ids = prompt_of(20 + 13 * i, i);
    request.max_tokens = 24;
    request.sampling.beam_width = 1 + i % 4;
    request.sampling.length_penalty = 0.5f;
    request.sampling.repetition_penalty = 1.2f;  // reads the history that forks take with them
    request.sampling.no_repeat_ngram_size = i % 3;
    request.output.log_probs = true;
    requests.push_back(std::move(request));
  }
  std::vector<Tokens> alone;
  for (const Request& request : requests) alone.push_back(run(*engine, {request})[0]);
  expect_same(run(*engine, requests), alone, "in company");
}

// The search keeps to what the model says: each beam's log probs are those of its tokens, computed anew as a prompt.
TEST_F(EngineGpuTest, BeamsHaveTheLogProbsOfTheirTokens) {
  ExecutorConfig config = config_for("cuda");
  config.max_beam_width = 4;
  const std::unique_ptr<Executor> engine = executor(config);
  Request request;
  request.input_ids = prompt_of(50, 3);
  request.max_tokens = 40;  // forks within and across KV blocks
  request.sampling.beam_width = 4;
  request.output.log_probs = true;
  const Result found = ask(*engine, request)->wait();
  ASSERT_EQ(found.beams.size(), 4u);
  for (const BeamResult& beam : found.beams) {
    Request again;
    again.input_ids = request.input_ids;
    again.input_ids.insert(again.input_ids.end(), beam.tokens.begin(), beam.tokens.end());
    again.max_tokens = 1;
    again.output.context_logits = true;
    const Result whole = ask(*engine, again)->wait();
    const size_t vocabulary = whole.context_logits.size() / again.input_ids.size();
    for (size_t i = 0; i < beam.tokens.size(); ++i) {
      const float* row = whole.context_logits.data() + (request.input_ids.size() - 1 + i) * vocabulary;
      const float highest = *std::max_element(row, row + vocabulary);
      double sum = 0;
      for (size_t j = 0; j < vocabulary; ++j) sum += std::exp(static_cast<double>(row[j] - highest));
      EXPECT_NEAR(beam.log_probs[i], row[beam.tokens[i]] - highest - std::log(sum), 0.15) << "token " << i;
    }
  }
}

TEST_F(EngineGpuTest, SeveralRanksAreRefused) {
  ExecutorConfig config = config_for("cuda");
  config.tensor_parallel = 2;
  expect_error(ErrorCode::kUnsupported, {"tensor_parallel 2", "one GPU"}, [&] { Engine(folder_.path(), config); });
}

}  // namespace
}  // namespace inflight
