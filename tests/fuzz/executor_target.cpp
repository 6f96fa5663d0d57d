#include <condition_variable>
#include <map>
#include <mutex>

#include "inflight_batcher/api/executor.h"
#include "tests/batcher/tiny_engine.h"
#include "tests/fuzz/executor_requests.h"
#include "tests/fuzz/targets.h"

namespace inflight::fuzz {

namespace {

using testing::TemporaryFolder;
using testing::TinyNetwork;

constexpr auto kPatience = std::chrono::minutes(2);

/// Ends of the requests of one case: each sequence has exactly one, and tokens come in order.
class Ends {
 public:
  void expect(int64_t sequences) {
    const std::lock_guard lock(mutex_);
    ++open_;
    wanted_ += sequences;
  }
  void take_back(int64_t sequences) {  // refused at submission
    const std::lock_guard lock(mutex_);
    --open_;
    wanted_ -= sequences;
  }
  void take(const Result& result) {
    const std::lock_guard lock(mutex_);
    const auto sequence = std::make_pair(result.request_id, result.sequence_index);
    if (ended_.contains(sequence)) fault_ = "a result after the sequence's final one";
    if (result.sequence_final) ended_[sequence] = true;
    if (result.request_final) --open_;
    check(result.tokens);
    for (const BeamResult& beam : result.beams) check(beam.tokens);
    changed_.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, kPatience, [&] { return open_ == 0; })) throw std::logic_error("requests never end");
    if (!fault_.empty()) throw std::logic_error(fault_);
    if (static_cast<int64_t>(ended_.size()) != wanted_) throw std::logic_error("a sequence without an end");
  }

 private:
  void check(const std::vector<TokenId>& tokens) {  // a prompt in front of them may hold virtual ones
    for (const TokenId token : tokens)
      if (token < 0 || token >= TinyNetwork::kVocabulary + kVirtualTokens) fault_ = "a token outside the vocabulary";
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::pair<RequestId, int>, bool> ended_;
  int open_ = 0;
  int64_t wanted_ = 0;
  std::string fault_;
};

/// Requests of every kind at one executor that lives through all cases, some of them cancelled.
class ExecutorTarget : public Target {
 public:
  explicit ExecutorTarget(const ExecutorConfig& config) {
    testing::write_engine(folder_.path(), TinyNetwork().plan());
    executor_ = std::make_unique<Executor>(folder_.path().string(), config);
  }
  void run(Dice& dice) override {
    const auto ends = std::make_shared<Ends>();
    for (int64_t count = dice.between(1, 12); count > 0; --count) submit(dice, ends);
    ends->wait();
  }
  void finish() override {
    const auto end = std::chrono::steady_clock::now() + kPatience;
    while (executor_->stats().kv_blocks_used != 0 || executor_->stats().active_requests != 0)
      if (std::chrono::steady_clock::now() > end) throw std::logic_error("blocks or requests are held back");
  }

 private:
  void submit(Dice& dice, const std::shared_ptr<Ends>& ends) {
    Request one = draw_request(dice);
    const int sequences = one.sampling.num_return_sequences;
    ends->expect(sequences);
    try {
      const RequestId id = executor_->submit(std::move(one), [ends](Result&& result) { ends->take(result); });
      if (dice.chance(0.2)) executor_->cancel(dice.chance(0.9) ? id : dice.bits()());
    } catch (const Error&) {
      ends->take_back(sequences);
    }
  }

  TemporaryFolder folder_;
  std::unique_ptr<Executor> executor_;
};

ExecutorConfig small_config() {
  ExecutorConfig config;
  config.device = "cpu";
  config.num_threads = 1;
  config.max_batch_size = 6;
  config.max_num_tokens = 32;
  config.kv_cache.max_tokens = 512;
  config.kv_cache.block_size = 8;
  config.max_logits_bytes = 1 << 20;
  config.max_beam_width = kMostBeams;
  return config;
}

NamedTarget executor_target(const char* name, const std::function<void(ExecutorConfig&)>& change) {
  ExecutorConfig config = small_config();
  change(config);
  return {name, 8, [config] { return std::make_unique<ExecutorTarget>(config); }};
}

}  // namespace

std::vector<NamedTarget> executor_targets() {
  return {executor_target("executor", [](ExecutorConfig&) {}),
          executor_target("executor_short",
                          [](ExecutorConfig& config) {  // of blocks: pauses
                            config.capacity_policy = CapacityPolicy::kMaxUtilization;
                            config.kv_cache.max_tokens = 128;
                          }),
          executor_target("executor_host",
                          [](ExecutorConfig& config) {  // blocks move there and back
                            config.kv_cache.max_tokens = 128;
                            config.kv_cache.host_memory_bytes = 1 << 14;
                          }),
          executor_target("executor_window",
                          [](ExecutorConfig& config) {
                            config.kv_cache.attention_windows = {5, 20};
                            config.kv_cache.sink_tokens = 2;
                          }),
          executor_target("executor_ahead",
                          [](ExecutorConfig& config) {
                            config.plan_ahead = true;
                            config.kv_cache.host_memory_bytes = 1 << 14;
                            config.capacity_policy = CapacityPolicy::kMaxUtilization;
                            config.kv_cache.max_tokens = 128;
                          }),
          executor_target("executor_ranks", [](ExecutorConfig& config) {
            config.tensor_parallel = config.pipeline_parallel = 2;
            config.num_threads = 4;
          })};
}

}  // namespace inflight::fuzz
