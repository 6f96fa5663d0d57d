#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace inflight::cpu {

/// Fixed workers for short data-parallel jobs; the caller of run() is one of them. A job is cut into chunks that
/// threads claim by counting down one atomic, so a worker that wakes late finds nothing and delays nobody. Between jobs
/// workers spin some tens of microseconds (the next op of a step follows at once), then block: an idle pool uses no
/// processor. One thread at a time may call run(); a call from inside a body runs its job on the spot.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls body(begin, end) on disjoint ranges covering [0, count), none shorter than `grain` but the last. Rethrows
  /// the first exception of a body; the ranges not begun by then are left out.
  void run(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

 private:
  using Body = std::function<void(int64_t, int64_t)>;

  void work();
  bool claim_and_run();
  void run_chunk(int32_t chunk);
  void wait_until_finished();

  // The job: written by the caller before unclaimed_ is raised, read by whoever has claimed a chunk of it.
  const Body* body_ = nullptr;
  int64_t count_ = 0;
  int64_t chunk_size_ = 0;
  bool busy_ = false;

  alignas(64) std::atomic<int32_t> unclaimed_ = 0;  // chunks nobody has taken; kStop ends the workers
  alignas(64) std::atomic<int32_t> unfinished_ = 0;
  std::atomic<bool> failed_ = false;
  std::mutex failure_mutex_;
  std::exception_ptr failure_;
  std::vector<std::thread> workers_;
};

}  // namespace inflight::cpu
