#include <gtest/gtest.h>

#include <cmath>

#include "kernels/cuda/cuda.h"
#include "tests/batcher/executor_fixture.h"
#include "tests/cuda/gpu_network.h"

namespace inflight {
namespace {

using testing::Answer;
using testing::ask;
using testing::GpuNetwork;

constexpr int kBlock = 64;

class KvCacheGpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device";
    GpuNetwork::write(folder_.path());
  }

  static ExecutorConfig config(const std::string& device) {
    ExecutorConfig config;
    config.device = device;
    config.num_threads = 4;
    config.max_num_tokens = 512;
    config.max_batch_size = 16;
    config.batch_invariant = device == "cuda";
    config.kv_cache.max_tokens = 12 * kBlock;
    config.kv_cache.block_size = kBlock;
    return config;
  }

  std::unique_ptr<Executor> executor(const ExecutorConfig& config) {
    return std::make_unique<Executor>(folder_.path().string(), config);
  }

  /// Five blocks each, with nothing in common.
  static std::vector<TokenId> prompt(int salt) {
    std::vector<TokenId> tokens(5 * kBlock + 1);
    for (size_t i = 0; i < tokens.size(); ++i)
      tokens[i] = static_cast<TokenId>((i * i * 7 + i * 31 + salt * 101 + salt) % GpuNetwork::kVocabulary);
    return tokens;
  }

  static std::vector<std::vector<TokenId>> ask_all(Executor& executor) {
    std::vector<std::vector<TokenId>> answers;
    for (int salt = 0; salt < 6; ++salt) {
      Request request;
      request.input_ids = prompt(salt);
      request.max_tokens = 12;
      const Result result = ask(executor, request)->wait();
      EXPECT_FALSE(result.failed) << result.error;
      answers.push_back(result.tokens);
    }
    return answers;
  }

  std::vector<float> context_logits(const Request& request, const ExecutorConfig& config) {
    const auto engine = executor(config);
    const Result result = ask(*engine, request)->wait();
    EXPECT_FALSE(result.failed) << result.error;
    return result.context_logits;
  }

  static double relative_difference(const std::vector<float>& found, const std::vector<float>& expected) {
    if (found.empty() || found.size() != expected.size()) return HUGE_VAL;
    double difference = 0, size = 0;
    for (size_t i = 0; i < found.size(); ++i) {
      difference += std::pow(static_cast<double>(found[i]) - expected[i], 2);
      size += std::pow(static_cast<double>(expected[i]), 2);
    }
    return std::sqrt(difference / size);
  }

  testing::TemporaryFolder folder_;
};

TEST_F(KvCacheGpuTest, BlocksComeBackFromTheHostsMemoryBitForBit) {
  ExecutorConfig config = this->config("cuda");
  std::vector<std::vector<TokenId>> expected;
  {
    const auto plain = executor(config);
    expected = ask_all(*plain);
    ask_all(*plain);
    EXPECT_EQ(plain->stats().tokens_reused, 0);
  }
  config.kv_cache.host_memory_bytes = 64 << 20;
  const auto offloading = executor(config);
  EXPECT_GT(offloading->stats().memory_pinned_bytes, 0);
  for (int round = 0; round < 3; ++round) EXPECT_EQ(ask_all(*offloading), expected) << "round " << round;
  const ExecutorStats stats = offloading->stats();
  EXPECT_EQ(stats.tokens_reused, 2 * 6 * 5 * kBlock);
  EXPECT_GT(stats.kv_blocks_onboarded, 0);
}

TEST_F(KvCacheGpuTest, VirtualTokensGiveTheCpuEnginesLogits) {
  Request request;
  request.input_ids = prompt(1);
  request.input_ids.resize(100);
  auto table = std::make_shared<PromptTable>();
  table->rows = 3;
  table->width = GpuNetwork::kWidth;
  for (int i = 0; i < table->rows * table->width; ++i)
    table->values.push_back(static_cast<float>((i * 37) % 17 - 8) / 16.0f);  // exact in bfloat16
  for (const int place : {0, 40, 41, 99}) request.input_ids[place] = GpuNetwork::kVocabulary + place % 3;
  request.max_tokens = 8;
  request.output.context_logits = true;
  request.prompt_tuning.table = table;
  const auto logits_on = [&](const std::string& device) { return context_logits(request, config(device)); };
  EXPECT_LT(relative_difference(logits_on("cuda"), logits_on("cpu")), 2e-2);
}

TEST_F(KvCacheGpuTest, WindowsAndSinksHideTheSameTokens) {
  Request request;
  request.input_ids = prompt(1);
  request.input_ids.resize(150);
  request.max_tokens = 8;
  request.output.context_logits = true;
  const auto logits_on = [&](const std::string& device, int sinks) {
    ExecutorConfig config = this->config(device);
    config.kv_cache.attention_windows = {20};
    config.kv_cache.sink_tokens = sinks;
    return context_logits(request, config);
  };
  const std::vector<float> found = logits_on("cuda", 4);
  EXPECT_LT(relative_difference(found, logits_on("cpu", 4)), 2e-2);
  EXPECT_GT(relative_difference(found, logits_on("cpu", 0)), 5e-2);
}

}  // namespace
}  // namespace inflight
