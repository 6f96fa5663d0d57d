#pragma once

#include <cstdint>
#include <functional>

#include "inflight/op_table.h"

namespace inflight::cpu {

class ThreadPool;

/// One rank's share of the host: `threads` workers, the caller among them.
class CpuContext : public DeviceContext {
 public:
  explicit CpuContext(int threads);
  ~CpuContext() override;
  CpuContext(const CpuContext&) = delete;
  CpuContext& operator=(const CpuContext&) = delete;

  void copy(void* destination, const void* source, size_t bytes) override;

  int threads() const;

  /// Calls body(begin, end) on disjoint ranges that cover [0, count), in parallel when count exceeds `grain`.
  /// Which thread runs which range never changes a result: bodies own the outputs of their range.
  void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

 private:
  ThreadPool* pool_;
};

/// Processors this process may use: its affinity mask, capped by a cgroup's quota. The default for CpuContext's
/// threads.
int default_threads();

/// The reference implementations: float32 arithmetic, threaded, deterministic; the oracle and the CPU engine.
/// Throws Error(kUnsupported) where the processor lacks what the kernels were compiled for.
const OpTable& op_table();

}  // namespace inflight::cpu
