#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "inflight_batcher/api/executor_config.h"
#include "inflight_batcher/engine/rank_runner.h"

namespace inflight {

/// A plan bound to devices: one thread a rank, weights loaded and sharded, memory planned. Steps go in in order and
/// come out in order; with several pipeline stages, as many can be under way, and two where steps are planned ahead
/// (the second takes tokens that the first one samples). One thread calls submit, wait and recover.
class Engine {
 public:
  /// Throws Error when the plan cannot be read, loaded or run here.
  Engine(const std::filesystem::path& directory, const ExecutorConfig& config);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const Plan& plan() const { return plan_; }
  const Topology& topology() const { return topology_; }
  const std::string& device() const { return device_; }  // "cpu" or "cuda"
  int num_blocks() const { return num_blocks_; }
  int num_host_blocks() const { return num_host_blocks_; }
  int block_size() const { return block_size_; }
  /// Whether a step may hold Step::kPendingToken for what the step before samples.
  bool plans_ahead() const { return plan_ahead_; }
  int max_steps_in_flight() const { return plan_ahead_ ? 2 : topology_.pipeline_parallel; }
  size_t weight_bytes() const;
  size_t memory_bytes() const;  // on the engine's device
  size_t host_kv_bytes() const;
  int64_t kv_bytes_per_token() const;
  /// How long loading took and what memory became of it, a few lines for the log; empty on the CPU.
  std::string load_report() const;

  /// For all ranks, or, when it throws, for none.
  void submit(Step& step);

  /// Blocks until the step has been through all ranks. Throws what went wrong first, in this step or in another one
  /// under way: those fail with it, and so does every further one until recover(), called with nothing under way.
  void wait(Step& step);
  /// Throws where a device cannot go on: the engine is at its end.
  void recover();

 private:
  struct Rank {
    std::thread thread;
    std::unique_ptr<RankRunner> runner;
    std::deque<Step*> queue;
    std::atomic<int> queued{0};  // its size, for a look without the lock
    std::deque<Step*> launched;  // the rank's thread's own
    std::condition_variable wake;

    bool can_launch() const { return static_cast<int>(launched.size()) < runner->max_launched(); }
  };

  DType activation_dtype() const;
  void choose_device(const ExecutorConfig& config);
  int choose_num_blocks(const ExecutorConfig& config) const;
  int choose_num_host_blocks(const KvCacheConfig& kv) const;
  RankConfig rank_config(const ExecutorConfig& config, int rank) const;
  std::unique_ptr<RankRunner> make_runner(const RankConfig& config);
  void load_ranks(const ExecutorConfig& config);
  void rank_loop(Rank& rank);
  void launch_next(Rank& rank, std::unique_lock<std::mutex>& lock);
  void finish_oldest(Rank& rank);
  bool attempt(Step& step, const std::function<void()>& action);
  void leave_rank(Step& step);
  void stop();
  void abort_groups();

  Plan plan_;
  Topology topology_;
  std::string device_;
  bool plan_ahead_ = false;
  int block_size_ = 0;
  int num_blocks_ = 0;
  int num_host_blocks_ = 0;
  std::vector<std::unique_ptr<ThreadGroup>> tensor_groups_;  // by stage
  std::unique_ptr<ThreadGroup> pipeline_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  std::mutex mutex_;  // guards the queues, the steps' ranks_left and failed, failure_, stopping_
  std::condition_variable done_;
  std::exception_ptr failure_;  // the first one since recover(): others only follow from it
  std::atomic<bool> stopping_{false};
};

}  // namespace inflight
