#include "kernels/cpu/cpu.h"

#include <sched.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <thread>

#include "kernels/cpu/thread_pool.h"

namespace inflight::cpu {
namespace {

int processors_in_affinity() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return static_cast<int>(std::thread::hardware_concurrency());
  return CPU_COUNT(&set);
}

// cgroup v2: "<quota> <period>" in microseconds, or "max <period>" without a limit. 0 = no limit known.
int processors_in_quota() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  int64_t quota = 0, period = 0;
  if (!(file >> quota >> period) || quota <= 0 || period <= 0) return 0;
  return static_cast<int>((quota + period - 1) / period);
}

}  // namespace

CpuContext::CpuContext(int threads) : pool_(new ThreadPool(threads)) {}
CpuContext::~CpuContext() { delete pool_; }
void CpuContext::copy(void* destination, const void* source, size_t bytes) { std::memcpy(destination, source, bytes); }

int CpuContext::threads() const { return pool_->threads(); }

void CpuContext::parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  pool_->run(count, grain, body);
}

int default_threads() {
  const int processors = std::max(1, processors_in_affinity());
  const int quota = processors_in_quota();
  return quota > 0 ? std::min(processors, quota) : processors;
}

}  // namespace inflight::cpu
