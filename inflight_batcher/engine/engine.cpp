#include "inflight_batcher/engine/engine.h"

#include <algorithm>
#include <system_error>

namespace inflight {

namespace {

// Logits are the widest activation by far: they are computed in slices of at most so many rows.
constexpr int kMaxLogitsRows = 256;

constexpr int kMaxRanks = 1024;  // threads of one process; beyond that a slip of the pen is likelier than a machine

void check_config(const ExecutorConfig& config) {
  check(config.device == "auto" || config.device == "cpu", ErrorCode::kUnsupported, "device '", config.device,
        "': this build runs on the CPU only (wanted cpu or auto)");
  const auto positive = [](int value, const char* name) {
    check(value >= 1, ErrorCode::kInvalidArgument, name, " is ", value, ", wanted at least 1");
  };
  positive(config.tensor_parallel, "tensor_parallel");
  positive(config.pipeline_parallel, "pipeline_parallel");
  check(static_cast<int64_t>(config.tensor_parallel) * config.pipeline_parallel <= kMaxRanks,
        ErrorCode::kInvalidArgument, "tensor_parallel ", config.tensor_parallel, " x pipeline_parallel ",
        config.pipeline_parallel, " ranks are wanted, at most ", kMaxRanks, " are possible");
  positive(config.max_batch_size, "max_batch_size");
  positive(config.max_num_tokens, "max_num_tokens");
  check(config.max_num_tokens >= config.max_batch_size, ErrorCode::kInvalidArgument, "max_num_tokens is ",
        config.max_num_tokens, ", less than max_batch_size ", config.max_batch_size,
        ": a step could not advance every sequence");
  check(config.num_threads >= 0, ErrorCode::kInvalidArgument, "num_threads is ", config.num_threads);
  const int block = config.kv_cache.block_size;
  check(block >= 1 && (block & (block - 1)) == 0, ErrorCode::kInvalidArgument, "kv_cache.block_size is ", block,
        ", wanted a power of two");
  const double fraction = config.kv_cache.free_memory_fraction;
  check(fraction > 0.0 && fraction <= 1.0, ErrorCode::kInvalidArgument, "kv_cache.free_memory_fraction is ", fraction,
        ", wanted more than 0 and at most 1");
}

}  // namespace

Engine::Engine(const std::filesystem::path& directory, const ExecutorConfig& config) {
  check_config(config);
  plan_ = read_plan(directory);
  topology_ = {config.tensor_parallel, config.pipeline_parallel};
  block_size_ = config.kv_cache.block_size;
  num_blocks_ = choose_num_blocks(config);
  for (int stage = 0; stage < topology_.pipeline_parallel; ++stage)
    tensor_groups_.push_back(std::make_unique<ThreadGroup>(topology_.tensor_parallel));
  pipeline_ = std::make_unique<ThreadGroup>(topology_.num_ranks());
  try {
    load_ranks(config);
  } catch (...) {
    stop();
    throw;
  }
}

Engine::~Engine() { stop(); }

int64_t Engine::kv_bytes_per_token() const {
  int64_t bytes = 0;
  for (const PlanKvLayer& layer : plan_.kv_layers) {
    const int64_t heads = std::max(layer.num_kv_heads, topology_.tensor_parallel);  // shared heads are held twice
    bytes += 2 * heads * layer.head_size * static_cast<int64_t>(sizeof(float));
  }
  return bytes;
}

int Engine::choose_num_blocks(const ExecutorConfig& config) const {
  const KvCacheConfig& kv = config.kv_cache;
  const auto memory = static_cast<int64_t>(static_cast<double>(kv.cpu_memory_bytes) * kv.free_memory_fraction);
  int64_t tokens = memory / kv_bytes_per_token();
  if (kv.max_tokens) tokens = std::min(tokens, *kv.max_tokens);
  const int64_t blocks = std::min<int64_t>(tokens / block_size_, INT32_MAX / block_size_);
  check(blocks >= 1, ErrorCode::kInvalidArgument, "the KV cache would hold ", tokens, " tokens (", memory, " bytes at ",
        kv_bytes_per_token(), " a token, max_tokens ", kv.max_tokens ? std::to_string(*kv.max_tokens) : "unset",
        "), less than one block of ", block_size_);
  return static_cast<int>(blocks);
}

void Engine::load_ranks(const ExecutorConfig& config) {
  const int total = config.num_threads > 0 ? config.num_threads : cpu::default_threads();
  const int count = topology_.num_ranks();
  std::vector<std::exception_ptr> errors(count);
  for (int i = 0; i < count; ++i) ranks_.push_back(std::make_unique<Rank>());
  for (int i = 0; i < count; ++i) {
    RankConfig rank{topology_,
                    i,
                    std::max(1, total / count),
                    config.max_num_tokens,
                    std::min(kMaxLogitsRows, config.max_num_tokens),
                    num_blocks_,
                    block_size_};
    const auto load = [this, rank, &errors, i] {
      try {
        Communicator& tensor_group = tensor_groups_[topology_.stage_of(i)]->at(topology_.tp_rank_of(i));
        ranks_[i]->runner = std::make_unique<RankRunner>(plan_, rank, tensor_group, pipeline_->at(i));
      } catch (...) {
        errors[i] = std::current_exception();
        abort_groups();
      }
    };
    try {
      ranks_[i]->thread = std::thread(load);
    } catch (const std::system_error& e) {
      errors[i] =
          std::make_exception_ptr(Error(ErrorCode::kUnavailable, concat("no thread for rank ", i, ": ", e.what())));
      abort_groups();
    }
  }
  for (auto& rank : ranks_)
    if (rank->thread.joinable()) rank->thread.join();
  // The rank that failed first has the reason; the others only say that it did. Internal errors come last.
  std::exception_ptr reason;
  for (const std::exception_ptr& error : errors) {
    if (!error) continue;
    try {
      std::rethrow_exception(error);
    } catch (const Error& e) {
      if (!reason || e.code() != ErrorCode::kInternal) reason = error;
    } catch (const std::exception& e) {
      reason =
          std::make_exception_ptr(Error(ErrorCode::kUnavailable, concat("the engine cannot be loaded: ", e.what())));
    }
  }
  if (reason) std::rethrow_exception(reason);
  for (auto& rank : ranks_) rank->thread = std::thread([this, &rank = *rank] { rank_loop(rank); });
}

void Engine::rank_loop(Rank& rank) {
  std::unique_lock lock(mutex_);
  while (true) {
    rank.wake.wait(lock, [&] { return stopping_ || !rank.queue.empty(); });
    if (stopping_) return;
    Step& step = *rank.queue.front();
    rank.queue.pop_front();
    lock.unlock();
    run_guarded(rank, step);
    lock.lock();
    if (--step.ranks_left == 0) done_.notify_all();
  }
}

void Engine::run_guarded(Rank& rank, Step& step) {
  try {
    rank.runner->run(step);
  } catch (...) {
    std::lock_guard lock(mutex_);
    step.failed = true;
    if (!failure_) failure_ = std::current_exception();
    abort_groups();
  }
}

void Engine::submit(Step& step) {
  std::lock_guard lock(mutex_);
  step.ranks_left = static_cast<int>(ranks_.size());
  for (auto& rank : ranks_) {
    rank->queue.push_back(&step);
    rank->wake.notify_one();
  }
}

void Engine::wait(Step& step) {
  std::unique_lock lock(mutex_);
  done_.wait(lock, [&] { return step.ranks_left == 0; });
  if (step.failed) std::rethrow_exception(failure_);
}

void Engine::recover() {
  {
    std::lock_guard lock(mutex_);
    failure_ = nullptr;
  }
  for (auto& group : tensor_groups_) group->reset();
  pipeline_->reset();
}

void Engine::abort_groups() {
  for (auto& group : tensor_groups_) group->abort();
  pipeline_->abort();
}

void Engine::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    for (auto& rank : ranks_) rank->wake.notify_all();
  }
  abort_groups();  // a rank may be waiting for one that takes no further step
  for (auto& rank : ranks_)
    if (rank->thread.joinable()) rank->thread.join();
}

size_t Engine::weight_bytes() const {
  size_t bytes = 0;
  for (const auto& rank : ranks_) bytes += rank->runner->weight_bytes();
  return bytes;
}

size_t Engine::memory_bytes() const {
  size_t bytes = weight_bytes();
  for (const auto& rank : ranks_) bytes += rank->runner->arena_bytes() + rank->runner->kv_bytes();
  return bytes;
}

}  // namespace inflight
