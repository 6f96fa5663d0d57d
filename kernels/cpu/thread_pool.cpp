#include "kernels/cpu/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "inflight/error.h"

namespace inflight::cpu {
namespace {

constexpr int32_t kStop = -1;
constexpr int kChunksPerThread = 4;  // enough to even out unequal speeds, few enough to claim cheaply
constexpr auto kSpinTime = std::chrono::microseconds(40);
constexpr int kPollsPerClockRead = 64;

void pause() {
#ifdef __x86_64__
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Equal chunks of about `grain` or more; the same number for each thread when there are more chunks than threads.
int64_t chunk_size(int64_t count, int64_t grain, int64_t threads) {
  int64_t chunks = std::min(threads * kChunksPerThread, (count + grain - 1) / grain);
  if (chunks > threads) chunks = chunks / threads * threads;
  return (count + chunks - 1) / chunks;
}

// Polls until ready() or the spin time is over; the answer is ready()'s last.
template <typename Ready>
bool spin_until(const Ready& ready) {
  const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < kPollsPerClockRead; ++i) {
      if (ready()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return ready();
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  check(threads >= 1, ErrorCode::kInvalidArgument, "a CPU context needs at least 1 thread, got ", threads);
  workers_.reserve(threads - 1);
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
}

ThreadPool::~ThreadPool() {
  unclaimed_.store(kStop, std::memory_order_release);
  unclaimed_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(int64_t count, int64_t grain, const Body& body) {
  if (count <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  if (count <= grain || workers_.empty() || busy_) return body(0, count);

  body_ = &body;
  count_ = count;
  chunk_size_ = chunk_size(count, grain, threads());
  busy_ = true;
  const auto chunks = static_cast<int32_t>((count + chunk_size_ - 1) / chunk_size_);
  unfinished_.store(chunks, std::memory_order_relaxed);
  unclaimed_.store(chunks, std::memory_order_seq_cst);
  unclaimed_.notify_all();

  while (claim_and_run()) {
  }
  wait_until_finished();
  busy_ = false;
  if (failed_.exchange(false, std::memory_order_relaxed)) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void ThreadPool::work() {
  for (;;) {
    while (claim_and_run()) {
    }
    const auto has_news = [this] { return unclaimed_.load(std::memory_order_relaxed) != 0; };
    if (!spin_until(has_news)) unclaimed_.wait(0, std::memory_order_relaxed);
    if (unclaimed_.load(std::memory_order_relaxed) == kStop) return;
  }
}

bool ThreadPool::claim_and_run() {
  int32_t left = unclaimed_.load(std::memory_order_relaxed);
  do {
    if (left <= 0) return false;
  } while (!unclaimed_.compare_exchange_weak(left, left - 1, std::memory_order_acquire, std::memory_order_relaxed));
  run_chunk(left - 1);
  return true;
}

void ThreadPool::run_chunk(int32_t chunk) {
  const int64_t begin = chunk * chunk_size_;
  try {
    if (!failed_.load(std::memory_order_relaxed)) (*body_)(begin, std::min(begin + chunk_size_, count_));
  } catch (...) {
    const std::lock_guard lock(failure_mutex_);
    if (!failed_.exchange(true, std::memory_order_relaxed)) failure_ = std::current_exception();
  }
  if (unfinished_.fetch_sub(1, std::memory_order_seq_cst) == 1) unfinished_.notify_all();
}

void ThreadPool::wait_until_finished() {
  const auto finished = [this] { return unfinished_.load(std::memory_order_acquire) == 0; };
  if (spin_until(finished)) return;
  for (int32_t left; (left = unfinished_.load(std::memory_order_acquire)) != 0;)
    unfinished_.wait(left, std::memory_order_acquire);
}

}  // namespace inflight::cpu
