#include "inflight_batcher/engine/engine.h"

#include <gtest/gtest.h>

#include <numeric>
#include <optional>

#include "tests/batcher/tiny_engine.h"

namespace inflight {
namespace {

using testing::expect_error;
using testing::json;
using testing::op;
using testing::TinyNetwork;

constexpr int kVocabulary = TinyNetwork::kVocabulary;

ExecutorConfig small_config(int tensor_parallel = 1, int pipeline_parallel = 1) {
  ExecutorConfig config;
  config.device = "cpu";
  config.tensor_parallel = tensor_parallel;
  config.pipeline_parallel = pipeline_parallel;
  config.num_threads = tensor_parallel * pipeline_parallel;
  config.max_num_tokens = 512;
  config.max_batch_size = 8;
  config.kv_cache.max_tokens = 512;
  return config;
}

/// A step that computes one sequence's first `count` tokens, greedily samples the next one and returns the logits of
/// the last `rows` tokens.
Step prompt_step(int count, int rows) {
  Step step;
  for (int i = 0; i < count; ++i) step.token_ids.push_back(i * 7 % kVocabulary);
  step.positions.resize(count);
  std::iota(step.positions.begin(), step.positions.end(), 0);
  step.token_sequences.assign(count, 0);
  step.query_offsets = {0, count};
  step.context_lengths = {count};
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

struct EngineTest : ::testing::Test {
  void write() { testing::write_engine(folder.path(), document); }

  /// The logits of the last `rows` tokens of a prompt of `count`, the last first.
  std::vector<float> logits(int count, int rows, const ExecutorConfig& config) {
    write();
    Engine engine(folder.path(), config);
    Step step = prompt_step(count, rows);
    engine.submit(step);
    engine.wait(step);
    EXPECT_EQ(step.tokens.size(), 1u);
    return step.logits;
  }

  void expect_refused(const ExecutorConfig& config, const std::vector<std::string>& parts,
                      ErrorCode code = ErrorCode::kInvalidArgument) {
    write();
    expect_error(code, parts, [&] { Engine(folder.path(), config); });
  }

  testing::TemporaryFolder folder;
  json document = TinyNetwork().plan();
};

TEST_F(EngineTest, RanksOfAnyLayoutComputeTheSame) {
  const std::vector<float> alone = logits(40, 3, small_config());
  ASSERT_EQ(alone.size(), 3u * kVocabulary);
  EXPECT_GT(*std::max_element(alone.begin(), alone.end()), 0.5f);
  for (const auto& [tensor, pipeline] : std::vector<std::pair<int, int>>{{2, 1}, {4, 1}, {1, 2}, {2, 2}}) {
    const std::vector<float> together = logits(40, 3, small_config(tensor, pipeline));
    ASSERT_EQ(together.size(), alone.size());
    for (size_t i = 0; i < alone.size(); ++i) ASSERT_NEAR(together[i], alone[i], 1e-4) << tensor << " x " << pipeline;
  }
}

// Logits are computed in slices of 256 rows: an epilogue that adds to a residual must not do so once per slice.
TEST_F(EngineTest, ManyLogitsRowsAreTheSameAsFew) {
  json& epilogue = document["blocks"]["epilogue"];
  document["blocks"]["layers"]["carry"] = testing::carry({{"x", "x.next"}, {"y", "middle"}});
  document["blocks"]["prologue"].push_back(
      op("activation", {{"x", "x"}}, {}, {{"out", "y"}}, {{"activation", "gelu"}}));
  epilogue[0]["inputs"]["residual"] = "y";
  epilogue[0]["outputs"]["residual"] = "sum";
  const std::vector<float> many = logits(400, 400, small_config());
  const std::vector<float> few = logits(400, 1, small_config());
  EXPECT_EQ(std::vector<float>(many.begin(), many.begin() + kVocabulary), few);
  document["blocks"]["epilogue"] = TinyNetwork().plan()["blocks"]["epilogue"];
  EXPECT_NE(logits(400, 1, small_config()), few) << "the residual does not matter, so this test cannot fail";
  const std::vector<float> tail = logits(390, 1, small_config());
  EXPECT_EQ(std::vector<float>(logits(390, 390, small_config())).size(), 390u * kVocabulary);
  EXPECT_EQ(tail.size(), static_cast<size_t>(kVocabulary));
}

TEST_F(EngineTest, EveryRowOfAnEpilogueInSlicesEqualsItsOwnPrompt) {
  json& epilogue = document["blocks"]["epilogue"];
  document["blocks"]["layers"]["carry"] = testing::carry({{"x", "x.next"}, {"y", "middle"}});
  document["blocks"]["prologue"].push_back(
      op("activation", {{"x", "x"}}, {}, {{"out", "y"}}, {{"activation", "gelu"}}));
  epilogue[0]["inputs"]["residual"] = "y";
  epilogue[0]["outputs"]["residual"] = "sum";
  const std::vector<float> many = logits(400, 400, small_config());
  for (const int count : {399, 200, 140, 5}) {  // rows of the first and of the second slice
    const auto row = many.begin() + (400 - count) * kVocabulary;
    EXPECT_EQ(std::vector<float>(row, row + kVocabulary), logits(count, 1, small_config())) << count;
  }
}

TEST_F(EngineTest, MarkedEpilogueTensorsAreReturnedWithoutAnyLogits) {
  document["outputs"] = testing::marked_output("final", "normed", "epilogue");
  write();
  Engine engine(folder.path(), small_config());
  Step step = prompt_step(10, 1);
  Step without = prompt_step(10, 0);
  without.sampling.clear();
  step.return_captures = without.return_captures = true;
  for (Step* each : {&without, &step}) {
    engine.submit(*each);
    engine.wait(*each);
  }
  EXPECT_EQ(without.captures.at("final").size(), 10u * TinyNetwork::kWidth);
  EXPECT_EQ(without.captures.at("final"), step.captures.at("final"));
}

TEST_F(EngineTest, SettingsThatCannotBeAreRefusedWithTheirNumbers) {
  const auto refused = [&](auto change, const std::vector<std::string>& parts,
                           ErrorCode code = ErrorCode::kInvalidArgument) {
    ExecutorConfig config = small_config();
    change(config);
    expect_refused(config, parts, code);
  };
  refused([](auto& c) { c.device = "tpu"; }, {"'tpu'"}, ErrorCode::kUnsupported);
  refused([](auto& c) { c.plan_ahead = true, c.pipeline_parallel = 2; }, {"plan_ahead", "pipeline_parallel 2"},
          ErrorCode::kUnsupported);
  refused([](auto& c) { c.tensor_parallel = 0; }, {"tensor_parallel is 0"});
  refused([](auto& c) { c.pipeline_parallel = -1; }, {"pipeline_parallel is -1"});
  refused([](auto& c) { c.tensor_parallel = c.pipeline_parallel = 1 << 30; }, {"1073741824", "1024"});
  refused([](auto& c) { c.tensor_parallel = 3; }, {"4 query heads", "3 tensor-parallel ranks"});
  refused([](auto& c) { c.pipeline_parallel = 3; }, {"2 repeating units", "3 pipeline stages"});
  refused([](auto& c) { c.max_batch_size = 1000; }, {"max_num_tokens is 512", "1000"});
  refused([](auto& c) { c.num_threads = -2; }, {"num_threads is -2"});
  refused([](auto& c) { c.kv_cache.block_size = 24; }, {"block_size is 24", "power of two"});
  refused([](auto& c) { c.kv_cache.free_memory_fraction = 1.5; }, {"free_memory_fraction is 1.5"});
  refused([](auto& c) { c.kv_cache.max_tokens = 31; }, {"31 tokens", "one block of 32"});
  refused([](auto& c) { c.kv_cache.cpu_memory_bytes = -5; }, {"less than one block"});
}

TEST_F(EngineTest, WhereThereIsNoGpuAutoIsTheCpuAndCudaIsRefused) {
  write();
  ExecutorConfig config = small_config();
  try {
    config.device = "cuda";
    Engine engine(folder.path(), config);
    GTEST_SKIP() << "there is a GPU";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("CUDA"), std::string::npos) << e.what();
    if (std::string(e.what()).find("there are 0") == std::string::npos) {
      EXPECT_EQ(static_cast<int>(e.code()), static_cast<int>(ErrorCode::kUnsupported)) << e.what();
    }
  }
  config.device = "auto";
  const Engine engine(folder.path(), config);
  EXPECT_EQ(engine.device(), "cpu");
  EXPECT_FALSE(engine.plans_ahead());
  EXPECT_EQ(engine.max_steps_in_flight(), 1);
  EXPECT_EQ(engine.block_size(), 32);
}

/// The step that generates behind `before`: its token is what that one samples, known or pending.
Step next_step(const Step& before, const std::vector<int32_t>& history, std::optional<int32_t> token) {
  Step step;
  const int position = before.context_lengths[0];
  step.token_ids = {token.value_or(Step::kPendingToken)};
  step.positions = {position};
  step.token_sequences = {0};
  step.query_offsets = {0, 1};
  step.context_lengths = {position + 1};
  step.slots = {3};
  step.table_width = (position + 32) / 32;
  step.block_tables.resize(step.table_width);
  std::iota(step.block_tables.rbegin(), step.block_tables.rend(), 0);
  step.max_query_length = 1;
  step.max_context_length = position + 1;
  step.num_generation = 1;
  SamplingRow row;
  row.temperature = 0;
  row.repetition_penalty = 3.0f;  // so that the history matters
  row.history = history;
  row.pending = token ? 0 : position + 1 - static_cast<int>(history.size());
  row.prompt_length = before.sampling[0].prompt_length;
  step.sampling = {row};
  step.logits_rows = {0};
  step.return_logits = {1};
  return step;
}

TEST_F(EngineTest, PendingTokensAreWhatTheStepBeforeSampled) {
  write();
  for (const auto& [tensor, ahead] : std::vector<std::pair<int, bool>>{{1, true}, {2, true}}) {
    ExecutorConfig config = small_config(tensor);
    Engine plain(folder.path(), config);
    config.plan_ahead = ahead;
    Engine engine(folder.path(), config);
    EXPECT_EQ(engine.max_steps_in_flight(), 2);

    Step first = prompt_step(40, 1);
    first.slots = {3};
    std::vector<int32_t> history = first.token_ids;
    first.sampling[0].history = history;
    Step same = first;
    Step second = next_step(first, history, std::nullopt);
    engine.submit(first);
    engine.submit(second);
    engine.wait(first);
    engine.wait(second);

    plain.submit(same);
    plain.wait(same);
    ASSERT_EQ(first.tokens, same.tokens);
    std::vector<int32_t> longer = history;
    longer.push_back(same.tokens[0]);
    Step known = next_step(same, longer, same.tokens[0]);
    plain.submit(known);
    plain.wait(known);
    EXPECT_EQ(second.logits, known.logits);
    EXPECT_EQ(second.tokens, known.tokens);
    EXPECT_NE(second.tokens, first.tokens) << "the penalty did nothing, so this test cannot fail";
  }
}

TEST_F(EngineTest, StepsBehindAFailedOneFailUntilTheEngineRecovers) {
  write();
  ExecutorConfig config = small_config();
  config.plan_ahead = true;
  Engine engine(folder.path(), config);
  const auto step_with = [](float temperature, const std::vector<int32_t>& history) {
    Step step = prompt_step(20, 1);
    step.slots = {0};
    step.sampling[0].history = history;
    step.sampling[0].temperature = temperature;
    return step;
  };
  const std::vector<int32_t> history = prompt_step(20, 1).token_ids;
  Step bad = step_with(-1.0f, history), behind = step_with(0.0f, history), again = step_with(0.0f, history);
  engine.submit(bad);
  engine.submit(behind);
  for (Step* step : {&bad, &behind})
    expect_error(ErrorCode::kInvalidArgument, {"temperature is -1"}, [&] { engine.wait(*step); });
  engine.recover();
  engine.submit(again);
  engine.wait(again);
  EXPECT_EQ(again.tokens.size(), 1u);
}

TEST_F(EngineTest, RandomWeightsNeedNoCheckpoint) {
  write();
  std::filesystem::remove(folder.path() / "model.safetensors");
  for (const auto& [tensor, pipeline] : std::vector<std::pair<int, int>>{{1, 1}, {2, 2}, {4, 1}}) {
    ExecutorConfig config = small_config(tensor, pipeline);
    config.random_weights = true;
    std::vector<std::vector<float>> logits;
    for (int round = 0; round < 2; ++round) {
      Engine engine(folder.path(), config);
      Step step = prompt_step(40, 1);
      engine.submit(step);
      engine.wait(step);
      logits.push_back(step.logits);
    }
    EXPECT_EQ(logits[0], logits[1]) << "the same weights every time";
    EXPECT_NE(*std::max_element(logits[0].begin(), logits[0].end()),
              *std::min_element(logits[0].begin(), logits[0].end()));
  }
}

TEST_F(EngineTest, TheCacheTakesItsShareOfTheMemory) {
  write();
  ExecutorConfig config = small_config();
  config.kv_cache.max_tokens.reset();
  config.kv_cache.free_memory_fraction = 0.5;
  config.kv_cache.cpu_memory_bytes = 1 << 20;
  const Engine engine(folder.path(), config);
  EXPECT_EQ(engine.kv_bytes_per_token(), 2 * 2 * 2 * 4 * 4);  // layers, keys and values, heads, head size, bytes
  EXPECT_EQ(engine.num_blocks(), (1 << 19) / engine.kv_bytes_per_token() / 32);
  EXPECT_GE(engine.memory_bytes(), engine.weight_bytes() + engine.num_blocks() * 32 * engine.kv_bytes_per_token());
}

TEST_F(EngineTest, TheRankThatFailedFirstGivesTheReasonOnAnyLayout) {
  document["blocks"]["layers"]["ops"][0]["weights"]["weight"] = "layers.{layer+1}.norm";  // missing on the last stage
  for (const auto& [tensor, pipeline] : std::vector<std::pair<int, int>>{{1, 1}, {2, 1}, {1, 2}, {2, 2}})
    for (int i = 0; i < 5; ++i) expect_refused(small_config(tensor, pipeline), {"layer 1", "'layers.2.norm'"});
}

TEST_F(EngineTest, WeightFilesThatAreMissingOrCutShortAreNamed) {
  write();
  const auto file = folder.path() / "model.safetensors";
  std::filesystem::resize_file(file, std::filesystem::file_size(file) - 100);
  expect_error(ErrorCode::kInvalidArgument, {"model.safetensors", "cut short"},
               [&] { Engine(folder.path(), small_config()); });
  std::filesystem::remove(file);
  expect_error(ErrorCode::kNotFound, {"model.safetensors"}, [&] { Engine(folder.path(), small_config(2, 2)); });
}

}  // namespace
}  // namespace inflight
