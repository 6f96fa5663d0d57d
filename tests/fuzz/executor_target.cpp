#include <condition_variable>
#include <map>
#include <mutex>

#include "inflight_batcher/api/executor.h"
#include "tests/batcher/tiny_engine.h"
#include "tests/fuzz/targets.h"

namespace inflight::fuzz {

namespace {

using testing::TemporaryFolder;
using testing::TinyNetwork;

constexpr auto kPatience = std::chrono::seconds(30);

/// Ends of the requests of one case: each sequence has exactly one, and tokens come in order.
class Ends {
 public:
  void expect(int sequences) {
    const std::lock_guard lock(mutex_);
    ++open_;
    wanted_ += sequences;
  }
  void take_back(int sequences) {  // refused at submission
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
    for (const TokenId token : result.tokens)
      if (token < 0 || token >= TinyNetwork::kVocabulary) fault_ = "a token outside the vocabulary";
    changed_.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, kPatience, [&] { return open_ == 0; })) throw std::logic_error("requests never end");
    if (!fault_.empty()) throw std::logic_error(fault_);
    if (static_cast<int>(ended_.size()) != wanted_) throw std::logic_error("a sequence without an end");
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::pair<RequestId, int>, bool> ended_;
  int open_ = 0;
  int wanted_ = 0;
  std::string fault_;
};

TokenId token(Dice& dice) {
  return static_cast<TokenId>(dice.chance(0.99) ? dice.below(TinyNetwork::kVocabulary) : dice.integer());
}

std::vector<std::vector<TokenId>> words(Dice& dice) {
  std::vector<std::vector<TokenId>> list(static_cast<size_t>(dice.below(4)));
  for (auto& word : list) {
    word.resize(static_cast<size_t>(dice.between(dice.chance(0.98) ? 1 : 0, 3)));
    for (TokenId& part : word) part = token(dice);
  }
  return list;
}

/// Plain with a few wild values: of many, one would nearly always be refused.
SamplingConfig sampling(Dice& dice) {
  SamplingConfig config;
  if (dice.chance(0.5)) {
    config.top_k = static_cast<int>(dice.below(30));
    config.top_p = static_cast<float>(dice.below(11)) / 10;
    config.temperature = static_cast<float>(dice.below(30)) / 10;
    config.seed = dice.bits()();
  }
  if (dice.chance(0.3)) config.repetition_penalty = static_cast<float>(dice.chance(0.7) ? 1.3 : dice.real());
  if (dice.chance(0.3)) config.presence_penalty = static_cast<float>(dice.real());
  if (dice.chance(0.2)) config.frequency_penalty = static_cast<float>(dice.real());
  if (dice.chance(0.1)) config.prompt_ignore_length = static_cast<int>(dice.chance(0.8) ? 5 : dice.integer());
  if (dice.chance(0.1)) config.temperature = static_cast<float>(dice.real());
  if (dice.chance(0.1)) config.min_p = static_cast<float>(dice.real());
  if (dice.chance(0.1)) config.top_p = static_cast<float>(dice.real());
  if (dice.chance(0.1)) config.top_k = static_cast<int>(dice.integer());
  if (dice.chance(0.2)) config.no_repeat_ngram_size = static_cast<int>(dice.chance(0.8) ? 3 : dice.integer());
  if (dice.chance(0.2)) config.min_tokens = static_cast<int>(dice.chance(0.8) ? 5 : dice.integer());
  if (dice.chance(0.2)) config.num_return_sequences = static_cast<int>(dice.chance(0.9) ? 3 : dice.integer());
  return config;
}

OutputConfig output(Dice& dice) {
  OutputConfig config;
  config.streaming = dice.chance(0.5);
  config.exclude_input = dice.chance(0.8);
  config.log_probs = dice.chance(0.3);
  config.context_logits = dice.chance(0.1);
  config.generation_logits = dice.chance(0.1);
  config.perf_metrics = dice.chance(0.3);
  config.prefix_tokens = static_cast<int>(dice.chance(0.95) ? dice.below(5) : dice.integer());
  if (dice.chance(0.02)) config.additional_outputs = {dice.bytes(5)};
  return config;
}

Request request(Dice& dice) {
  Request it;
  it.input_ids.resize(static_cast<size_t>(dice.chance(0.97) ? dice.between(1, 40) : dice.below(400)));
  for (TokenId& id : it.input_ids) id = static_cast<TokenId>(dice.below(TinyNetwork::kVocabulary));
  if (dice.chance(0.03) && !it.input_ids.empty()) it.input_ids[0] = static_cast<TokenId>(dice.integer());
  it.max_tokens = static_cast<int>(dice.chance(0.95) ? dice.between(1, 20) : dice.integer());
  it.sampling = sampling(dice);
  it.output = output(dice);
  if (dice.chance(0.3)) it.end_id = token(dice);
  if (dice.chance(0.3)) it.stop_words = words(dice);
  if (dice.chance(0.3)) it.bad_words = words(dice);
  if (dice.chance(0.1)) {
    it.embedding_bias.resize(static_cast<size_t>(dice.chance(0.9) ? TinyNetwork::kVocabulary : dice.below(30)));
    for (float& bias : it.embedding_bias) bias = static_cast<float>(dice.chance(0.9) ? dice.below(5) : dice.real());
  }
  if (dice.chance(0.2)) it.priority = static_cast<float>(dice.chance(0.8) ? dice.below(3) * 0.5 : dice.real());
  if (dice.chance(0.1)) it.timeout = std::chrono::microseconds(dice.chance(0.8) ? dice.below(2000) : dice.integer());
  return it;
}

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
    Request one = request(dice);
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
          executor_target("executor_ahead",
                          [](ExecutorConfig& config) {
                            config.plan_ahead = true;
                            config.capacity_policy = CapacityPolicy::kMaxUtilization;
                            config.kv_cache.max_tokens = 128;
                          }),
          executor_target("executor_ranks", [](ExecutorConfig& config) {
            config.tensor_parallel = config.pipeline_parallel = 2;
            config.num_threads = 4;
          })};
}

}  // namespace inflight::fuzz
