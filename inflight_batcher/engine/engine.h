#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <filesystem>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "inflight_batcher/api/executor_config.h"
#include "inflight_batcher/engine/rank_runner.h"

namespace inflight {

/// A plan bound to devices: one thread a rank, weights loaded and sharded, memory planned. Steps go in in order and
/// come out in order; with several pipeline stages, as many can be under way. One thread calls submit, wait and
/// recover.
class Engine {
 public:
  /// Throws Error when the plan cannot be read, loaded or run here.
  Engine(const std::filesystem::path& directory, const ExecutorConfig& config);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const Plan& plan() const { return plan_; }
  const Topology& topology() const { return topology_; }
  int num_blocks() const { return num_blocks_; }
  int max_steps_in_flight() const { return topology_.pipeline_parallel; }
  size_t weight_bytes() const;
  size_t memory_bytes() const;
  int64_t kv_bytes_per_token() const;

  void submit(Step& step);

  /// Blocks until the step has been through all ranks. Throws what went wrong first, in this step or in another one
  /// under way: those fail with it, and so does every further one until recover(), called with nothing under way.
  void wait(Step& step);
  void recover();

 private:
  struct Rank {
    std::thread thread;
    std::unique_ptr<RankRunner> runner;
    std::deque<Step*> queue;
    std::condition_variable wake;
  };

  int choose_num_blocks(const ExecutorConfig& config) const;
  void load_ranks(const ExecutorConfig& config);
  void rank_loop(Rank& rank);
  void run_guarded(Rank& rank, Step& step);
  void stop();
  void abort_groups();

  Plan plan_;
  Topology topology_;
  int block_size_ = 0;
  int num_blocks_ = 0;
  std::vector<std::unique_ptr<ThreadGroup>> tensor_groups_;  // by stage
  std::unique_ptr<ThreadGroup> pipeline_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  std::mutex mutex_;  // guards the queues, the steps' ranks_left and failed, failure_, stopping_
  std::condition_variable done_;
  std::exception_ptr failure_;  // the first one since recover(): others only follow from it
  bool stopping_ = false;
};

}  // namespace inflight
