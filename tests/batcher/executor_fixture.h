#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#include "inflight_batcher/api/executor.h"
#include "inflight_batcher/engine/op_binding.h"
#include "tests/batcher/tiny_engine.h"

namespace inflight::testing {

/// What the op "test.fault" does: nothing, until a token of the step is the poison; and it can hold a step back, or
/// make each step so slow that a test has seconds to do something while requests run.
struct Fault {
  static constexpr TokenId kPoison = 22;
  static constexpr char kText[] = "the test op met the poison";

  std::atomic<bool> armed{false};
  std::atomic<bool> hold{false};
  std::atomic<bool> slow{false};
  std::atomic<bool> odd_exception{false};

  static Fault& instance() {
    static Fault fault;
    return fault;
  }

  void run(const RunContext& context) {
    while (hold) std::this_thread::sleep_for(std::chrono::microseconds(50));
    if (slow) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const auto* ids = context.batch->token_ids.as<int32_t>();
    if (!armed || std::find(ids, ids + context.batch->num_tokens(), kPoison) == ids + context.batch->num_tokens())
      return;
    if (odd_exception) throw 42;
    throw std::runtime_error(kText);
  }
};

/// Registers "test.fault" (in place; fails on the last tensor rank) once a process.
inline void register_fault_op() {
  static const bool registered = [] {
    register_op("test.fault", [](OpBinding& op) -> std::function<void(const RunContext&)> {
      op.output_in_place("out", "x");
      if (op.tp_rank() != op.tp_size() - 1) return [](const RunContext&) {};
      return [](const RunContext& context) { Fault::instance().run(context); };
    });
    return true;
  }();
  (void)registered;
}

/// What came back for one request, as it came.
class Answer {
 public:
  void take(Result&& result) {
    std::lock_guard lock(mutex_);
    EXPECT_FALSE(done_) << "a result after the final one";
    if (result.sequence_final) ++finals_[result.sequence_index];
    EXPECT_LE(finals_[result.sequence_index], 1);
    EXPECT_EQ(finals_[result.sequence_index], result.sequence_final ? 1 : 0)
        << "a result after the sequence's final one";
    if (!result.failed) {
      std::vector<TokenId>& tokens = tokens_[result.sequence_index];
      tokens.insert(tokens.end(), result.tokens.begin(), result.tokens.end());
      EXPECT_EQ(static_cast<int>(tokens.size()), result.num_generated_tokens) << "out of order";
    }
    if (result.request_final) {
      done_ = true;
      last_ = std::move(result);
      wake_.notify_all();
    }
  }

  /// The final result; fails the test when it does not come within a minute.
  Result wait() {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(wake_.wait_for(lock, std::chrono::minutes(1), [&] { return done_; })) << "no final result";
    return last_;
  }

  bool done() const {
    std::lock_guard lock(mutex_);
    return done_;
  }
  std::vector<TokenId> tokens(int sequence = 0) {
    wait();
    return tokens_[sequence];
  }
  int finals() const { return static_cast<int>(finals_.size()); }

 private:
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::map<int, int> finals_;
  std::map<int, std::vector<TokenId>> tokens_;
  bool done_ = false;
  Result last_;
};

inline std::shared_ptr<Answer> ask(Executor& executor, Request request, RequestId* id = nullptr) {
  auto answer = std::make_shared<Answer>();
  const RequestId given =
      executor.submit(std::move(request), [answer](Result&& result) { answer->take(std::move(result)); });
  if (id) *id = given;
  return answer;
}

inline Request make_request(std::vector<TokenId> prompt, int max_tokens = 12) {
  Request request;
  request.input_ids = std::move(prompt);
  request.max_tokens = max_tokens;
  request.output.streaming = true;
  return request;
}

struct Layout {
  int tensor_parallel = 1;
  int pipeline_parallel = 1;
  bool plan_ahead = false;

  std::string name() const { return concat("tp", tensor_parallel, "pp", pipeline_parallel, plan_ahead ? "ahead" : ""); }
};

inline const auto kLayouts =
    ::testing::Values(Layout{1, 1}, Layout{2, 1}, Layout{1, 2}, Layout{2, 2}, Layout{1, 1, true}, Layout{2, 1, true});

/// An engine folder of the tiny network with "test.fault" in its first or last block, and its answers without any
/// fault.
class ExecutorTest : public ::testing::TestWithParam<Layout> {
 protected:
  ExecutorTest() {
    register_fault_op();
    write(false);
  }
  ~ExecutorTest() override {
    Fault& fault = Fault::instance();
    fault.armed = fault.hold = fault.slow = fault.odd_exception = false;
  }

  void write(bool fault_in_epilogue) {
    json plan = TinyNetwork().plan();
    json& blocks = plan["blocks"];
    json& block = fault_in_epilogue ? blocks["epilogue"] : blocks["prologue"];
    // The op before hands its output to the fault under another name.
    json& before = fault_in_epilogue ? block[1] : block[0];
    const std::string name = before["outputs"]["out"];
    before["outputs"]["out"] = "untested";
    block.insert(block.begin() + (fault_in_epilogue ? 2 : 1),
                 op("test.fault", {{"x", "untested"}}, {}, {{"out", name}}));
    write_engine(folder_.path(), plan);
  }

  ExecutorConfig config() const {
    ExecutorConfig config;
    config.device = "cpu";
    config.tensor_parallel = GetParam().tensor_parallel;
    config.pipeline_parallel = GetParam().pipeline_parallel;
    config.plan_ahead = GetParam().plan_ahead;
    config.num_threads = config.tensor_parallel * config.pipeline_parallel;
    config.max_batch_size = 8;
    config.max_num_tokens = 64;
    config.kv_cache.max_tokens = 1024;
    config.kv_cache.block_size = 8;
    return config;
  }

  std::unique_ptr<Executor> make(const ExecutorConfig& config) {
    return std::make_unique<Executor>(folder_.path().string(), config);
  }

  /// Waits until the books are empty, as they are soon after the last final result.
  static void expect_nothing_left(const Executor& executor) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    ExecutorStats stats = executor.stats();
    while ((stats.active_requests != 0 || stats.kv_blocks_used != 0) && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      stats = executor.stats();
    }
    EXPECT_EQ(stats.active_requests, 0);
    EXPECT_EQ(stats.waiting_requests, 0);
    EXPECT_EQ(stats.kv_blocks_used, 0);
    EXPECT_EQ(stats.kv_blocks_free, stats.kv_blocks_max);
  }

  TemporaryFolder folder_;
};

inline std::string layout_name(const ::testing::TestParamInfo<Layout>& info) { return info.param.name(); }

}  // namespace inflight::testing
