#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>

#include "tests/kernels/harness.h"

namespace inflight::test {
namespace {

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](timeval time) { return static_cast<double>(time.tv_sec) + time.tv_usec * 1e-6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

TEST(ThreadPool, CoversEveryIndexOnce) {
  for (const int threads : {1, 2, 5}) {
    cpu::CpuContext pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (const int64_t count : {0, 1, 7, 64, 1000, 100003})
      for (const int64_t grain : {0, 1, 3, 100}) {
        std::vector<std::atomic<int>> hits(count);
        pool.parallel_for(count, grain, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) ++hits[i];
        });
        ASSERT_TRUE(std::all_of(hits.begin(), hits.end(), [](const auto& hit) { return hit == 1; }));
      }
  }
}

TEST(ThreadPool, SmallJobsStayOnTheCaller) {
  cpu::CpuContext pool(4);
  const std::thread::id caller = std::this_thread::get_id();
  int calls = 0;
  pool.parallel_for(100, 100, [&](int64_t begin, int64_t end) {
    EXPECT_EQ(std::this_thread::get_id(), caller);
    EXPECT_EQ(end - begin, 100);
    ++calls;
  });
  EXPECT_EQ(calls, 1);
}

TEST(ThreadPool, SeveralThreadsWork) {
  cpu::CpuContext pool(3);
  std::set<std::thread::id> ids;
  std::mutex mutex;
  std::condition_variable arrived;
  pool.parallel_for(12, 1, [&](int64_t, int64_t) {
    std::unique_lock lock(mutex);
    ids.insert(std::this_thread::get_id());
    arrived.notify_all();
    EXPECT_TRUE(arrived.wait_for(lock, std::chrono::minutes(1), [&] { return ids.size() == 3; }));
  });
  EXPECT_EQ(ids.size(), 3u);
  EXPECT_TRUE(ids.contains(std::this_thread::get_id()));
}

TEST(ThreadPool, ExceptionsReachTheCallerAndThePoolLivesOn) {
  cpu::CpuContext pool(3);
  for (int round = 0; round < 200; ++round) {
    const int64_t bad = round * 5 % 1000;
    EXPECT_THROW(pool.parallel_for(1000, 1,
                                   [&](int64_t begin, int64_t end) {
                                     if (begin <= bad && bad < end) throw std::out_of_range("bad");
                                   }),
                 std::out_of_range);
    std::atomic<int64_t> sum = 0;
    pool.parallel_for(1000, 1, [&](int64_t begin, int64_t end) { sum += end - begin; });
    ASSERT_EQ(sum, 1000);
  }
}

// A thread that has failed sees its own mark, so none can fail twice.
TEST(ThreadPool, AfterAFailureTheRestIsLeftOut) {
  cpu::CpuContext pool(3);
  std::atomic<int> calls = 0;
  EXPECT_THROW(pool.parallel_for(12, 1,
                                 [&](int64_t, int64_t) {
                                   ++calls;
                                   throw std::out_of_range("bad");
                                 }),
               std::out_of_range);
  EXPECT_LE(calls, 3);
}

TEST(ThreadPool, NestedJobsRunOnTheSpot) {
  cpu::CpuContext pool(3);
  std::atomic<int64_t> sum = 0;
  pool.parallel_for(20, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) pool.parallel_for(50, 1, [&](int64_t from, int64_t to) { sum += to - from; });
  });
  EXPECT_EQ(sum, 1000);
}

TEST(ThreadPool, PoolsOfSeveralRanksWorkSideBySide) {
  std::vector<std::thread> ranks;
  std::atomic<int> wrong = 0;
  for (int rank = 0; rank < 3; ++rank)
    ranks.emplace_back([&] {
      cpu::CpuContext pool(2);
      for (int round = 0; round < 2000; ++round) {
        std::atomic<int64_t> sum = 0;
        pool.parallel_for(37, 1, [&](int64_t begin, int64_t end) { sum += end - begin; });
        wrong += sum != 37;
      }
    });
  for (std::thread& rank : ranks) rank.join();
  EXPECT_EQ(wrong, 0);
}

// Jobs far enough apart that the workers sleep in between.
TEST(ThreadPool, SleepingWorkersWakeUp) {
  cpu::CpuContext pool(3);
  for (int round = 0; round < 30; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::atomic<int64_t> sum = 0;
    pool.parallel_for(100, 1, [&](int64_t begin, int64_t end) { sum += end - begin; });
    ASSERT_EQ(sum, 100);
  }
}

TEST(ThreadPool, IdleUsesNoProcessor) {
  cpu::CpuContext pool(4);
  pool.parallel_for(100, 1, [](int64_t, int64_t) {});
  // On a busy machine the workers come to rest later; those that never do are busy in every period.
  double used = 1;
  for (int period = 0; period < 100 && used > 0.01; ++period) {
    const double before = cpu_seconds();
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    used = cpu_seconds() - before;
  }
  EXPECT_LT(used, 0.01);
}

TEST(ThreadPool, NeedsAThread) {
  EXPECT_EQ(error_of(ErrorCode::kInvalidArgument, [] { cpu::CpuContext pool(0); }),
            "a CPU context needs at least 1 thread, got 0");
}

TEST(ThreadPool, DefaultThreadsArePlausible) {
  EXPECT_GE(cpu::default_threads(), 1);
  EXPECT_LE(cpu::default_threads(), static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
}

TEST(OpTable, IsWhole) {
  const OpTable& table = ops();
  EXPECT_STREQ(table.device, "cpu");
  EXPECT_TRUE(table.embedding && table.gather_rows && table.linear && table.rms_norm && table.layer_norm);
  EXPECT_TRUE(table.activation && table.gated_activation && table.add && table.rope_kv_write && table.attention);
  EXPECT_TRUE(table.copy_kv_blocks && table.sample);
}

}  // namespace
}  // namespace inflight::test
