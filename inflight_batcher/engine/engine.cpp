#include "inflight_batcher/engine/engine.h"

#include <algorithm>
#include <system_error>

#include "inflight_batcher/engine/attention_windows.h"
#include "inflight_batcher/engine/cpu_rank_runner.h"
#include "inflight_batcher/engine/kv_pool.h"
#ifdef INFLIGHT_HAS_CUDA
#include "inflight_batcher/engine/cuda_rank_runner.h"
#include "kernels/cuda/cuda.h"
#endif

namespace inflight {

namespace {

// Logits are the widest activation by far: they are computed in slices of at most so many rows.
constexpr int kMaxLogitsRows = 256;

// Tokens of a KV block where the configuration leaves it open: longer runs of keys suit a GPU's wide loads.
constexpr int kCpuBlockSize = 32;
constexpr int kCudaBlockSize = 64;

constexpr int kMaxBeamWidth = kMaxCandidates / 2;
constexpr int kMaxRanks = 1024;  // threads of one process; beyond that a slip of the pen is likelier than a machine

void check_config(const ExecutorConfig& config) {
  check(config.device == "auto" || config.device == "cpu" || config.device == "cuda", ErrorCode::kUnsupported,
        "device '", config.device, "' is none of auto, cpu, cuda");
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
  const int beams = std::min(kMaxBeamWidth, config.max_batch_size);
  check(config.max_beam_width >= 1 && config.max_beam_width <= beams, ErrorCode::kInvalidArgument, "max_beam_width is ",
        config.max_beam_width, ", wanted 1 to ", beams, " (max_batch_size is ", config.max_batch_size, ")");
  check(config.num_threads >= 0, ErrorCode::kInvalidArgument, "num_threads is ", config.num_threads);
  const int block = config.kv_cache.block_size.value_or(kCpuBlockSize);
  check(block >= 1 && (block & (block - 1)) == 0, ErrorCode::kInvalidArgument, "kv_cache.block_size is ", block,
        ", wanted a power of two");
  const double fraction = config.kv_cache.free_memory_fraction;
  check(fraction > 0.0 && fraction <= 1.0, ErrorCode::kInvalidArgument, "kv_cache.free_memory_fraction is ", fraction,
        ", wanted more than 0 and at most 1");
}

#ifdef INFLIGHT_HAS_CUDA
bool has_cuda_device() { return cuda::device_count() > 0; }
#else
bool has_cuda_device() { return false; }
#endif

}  // namespace

Engine::Engine(const std::filesystem::path& directory, const ExecutorConfig& config) {
  check_config(config);
  plan_ = read_plan(directory);
  topology_ = {config.tensor_parallel, config.pipeline_parallel};
  choose_device(config);
  limit_attention(plan_, config.kv_cache);
  const bool cuda = device_ == "cuda";
  block_size_ = config.kv_cache.block_size.value_or(cuda ? kCudaBlockSize : kCpuBlockSize);
  if (!cuda) num_blocks_ = choose_num_blocks(config);
  num_host_blocks_ = choose_num_host_blocks(config.kv_cache);
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

void Engine::choose_device(const ExecutorConfig& config) {
#ifndef INFLIGHT_HAS_CUDA
  check(config.device != "cuda", ErrorCode::kUnsupported, "device 'cuda': this build has no CUDA engine");
#endif
  device_ = config.device == "auto" ? (has_cuda_device() ? "cuda" : "cpu") : config.device;
  plan_ahead_ = config.plan_ahead.value_or(device_ == "cuda");
  if (device_ == "cuda")
    check(topology_.num_ranks() == 1, ErrorCode::kUnsupported, "tensor_parallel ", topology_.tensor_parallel,
          " x pipeline_parallel ", topology_.pipeline_parallel,
          ": the CUDA engine runs on one GPU so far (wanted 1 x 1, or device cpu)");
  check(!plan_ahead_ || topology_.pipeline_parallel == 1, ErrorCode::kUnsupported, "plan_ahead with pipeline_parallel ",
        topology_.pipeline_parallel, ": the first stage does not know what the last one samples (wanted 1)");
}

DType Engine::activation_dtype() const { return device_ == "cuda" ? DType::kBfloat16 : DType::kFloat32; }

int64_t Engine::kv_bytes_per_token() const {
  return inflight::kv_bytes_per_token(plan_, topology_.tensor_parallel, activation_dtype());
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

/// Without reuse nothing is cached, so nothing could move there.
int Engine::choose_num_host_blocks(const KvCacheConfig& kv) const {
  check(kv.host_memory_bytes >= 0, ErrorCode::kInvalidArgument, "kv_cache.host_memory_bytes is ", kv.host_memory_bytes,
        ", wanted at least 0");
  if (kv.host_memory_bytes == 0 || !kv.enable_block_reuse) return 0;
  const int64_t block_bytes = kv_bytes_per_token() * block_size_;
  const int64_t blocks = std::min<int64_t>(kv.host_memory_bytes / block_bytes, INT32_MAX / block_size_);
  check(blocks >= 1, ErrorCode::kInvalidArgument, "kv_cache.host_memory_bytes is ", kv.host_memory_bytes,
        ", less than one block of ", block_bytes, " bytes");
  return static_cast<int>(blocks);
}

RankConfig Engine::rank_config(const ExecutorConfig& config, int rank) const {
  const int threads = config.num_threads > 0 ? config.num_threads : cpu::default_threads();
  RankConfig out;
  out.topology = topology_;
  out.rank = rank;
  out.threads = std::max(1, threads / topology_.num_ranks());
  out.max_num_tokens = config.max_num_tokens;
  out.max_batch_size = config.max_batch_size;
  out.max_beam_width = config.max_beam_width;
  out.max_sequence_length =
      std::clamp(config.max_sequence_length.value_or(plan_.max_positions), 1, std::max(1, plan_.max_positions));
  out.max_logits_rows = std::min(kMaxLogitsRows, config.max_num_tokens);
  out.block_size = block_size_;
  out.num_blocks = num_blocks_;
  out.num_host_blocks = num_host_blocks_;
  out.kv_cache = config.kv_cache;
  out.plan_ahead = plan_ahead_;
  out.batch_invariant = config.batch_invariant;
  out.random_weights = config.random_weights;
  return out;
}

std::unique_ptr<RankRunner> Engine::make_runner(const RankConfig& config) {
  Communicator& tensor_group = tensor_groups_[topology_.stage_of(config.rank)]->at(topology_.tp_rank_of(config.rank));
#ifdef INFLIGHT_HAS_CUDA
  if (device_ == "cuda") return std::make_unique<CudaRankRunner>(plan_, config, tensor_group);
#endif
  return std::make_unique<CpuRankRunner>(plan_, config, tensor_group, pipeline_->at(config.rank));
}

void Engine::load_ranks(const ExecutorConfig& config) {
  const int count = topology_.num_ranks();
  std::vector<std::exception_ptr> errors(count);
  for (int i = 0; i < count; ++i) ranks_.push_back(std::make_unique<Rank>());
  for (int i = 0; i < count; ++i) {
    const auto load = [this, rank = rank_config(config, i), &errors, i] {
      try {
        ranks_[i]->runner = make_runner(rank);
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
  num_blocks_ = ranks_[0]->runner->num_blocks();
  for (auto& rank : ranks_) rank->thread = std::thread([this, &rank = *rank] { rank_loop(rank); });
}

void Engine::rank_loop(Rank& rank) {
  std::unique_lock lock(mutex_);
  while (true) {
    if (rank.launched.empty()) rank.wake.wait(lock, [&] { return stopping_ || !rank.queue.empty(); });
    if (stopping_) return;
    if (!rank.queue.empty() && rank.can_launch()) {
      launch_next(rank, lock);
      continue;
    }
    lock.unlock();
    // A step that comes in now must start before this one ends: the device never waits for the host.
    const auto wanted = [&] { return stopping_ || (rank.queued > 0 && rank.can_launch()); };
    while (!wanted() && !rank.runner->is_done(*rank.launched.front())) std::this_thread::yield();
    if (!wanted()) finish_oldest(rank);
    lock.lock();
  }
}

void Engine::launch_next(Rank& rank, std::unique_lock<std::mutex>& lock) {
  Step& step = *rank.queue.front();
  rank.queue.pop_front();
  --rank.queued;
  // It may build on a step that failed.
  const bool failed_before = failure_ != nullptr;
  step.failed |= failed_before;
  lock.unlock();
  const auto launch = [&] {
    rank.launched.push_back(&step);
    try {
      rank.runner->launch(step);
    } catch (...) {
      rank.launched.pop_back();
      throw;
    }
  };
  if (failed_before || !attempt(step, launch)) leave_rank(step);
  lock.lock();
}

void Engine::finish_oldest(Rank& rank) {
  Step& step = *rank.launched.front();
  rank.launched.pop_front();
  attempt(step, [&] { rank.runner->finish(step); });
  leave_rank(step);
}

bool Engine::attempt(Step& step, const std::function<void()>& action) {
  try {
    action();
    return true;
  } catch (...) {
    std::lock_guard lock(mutex_);
    step.failed = true;
    if (!failure_) failure_ = std::current_exception();
    abort_groups();
    return false;
  }
}

void Engine::leave_rank(Step& step) {
  std::lock_guard lock(mutex_);
  if (--step.ranks_left == 0) done_.notify_all();
}

void Engine::submit(Step& step) {
  std::lock_guard lock(mutex_);
  size_t ready = 0;
  try {
    for (; ready < ranks_.size(); ++ready) ranks_[ready]->queue.push_back(&step);
  } catch (...) {
    while (ready > 0) ranks_[--ready]->queue.pop_back();
    throw;
  }
  step.ranks_left = static_cast<int>(ranks_.size());
  for (auto& rank : ranks_) {
    ++rank->queued;
    rank->wake.notify_one();
  }
}

void Engine::wait(Step& step) {
  std::unique_lock lock(mutex_);
  done_.wait(lock, [&] { return step.ranks_left == 0; });
  if (!step.failed) return;
  check(failure_ != nullptr, ErrorCode::kInternal, "the step failed before the engine recovered");
  std::rethrow_exception(failure_);
}

void Engine::recover() {
  for (auto& rank : ranks_) rank->runner->recover();
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

size_t Engine::host_kv_bytes() const {
  size_t bytes = 0;
  for (const auto& rank : ranks_) bytes += rank->runner->host_kv_bytes();
  return bytes;
}

std::string Engine::load_report() const {
  std::string text;
  for (const auto& rank : ranks_) text += rank->runner->load_report();
  return text;
}

}  // namespace inflight
