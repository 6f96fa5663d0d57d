#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>

#include "kernels/cpu/cpu.h"

namespace inflight::cpu {

/// Elements, or vector multiplications, below which a second thread costs more than it brings: one or two microseconds.
inline constexpr int64_t kMinWorkPerThread = 1 << 13;

/// Runs body(begin, end) over [0, count), threaded when there is enough to do: `cost` is the elements an item touches.
template <typename Body>
void parallel_items(DeviceContext& context, int64_t count, int64_t cost, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, kMinWorkPerThread / std::max<int64_t>(1, cost));
  if (count <= grain) return body(int64_t{0}, count);
  static_cast<CpuContext&>(context).parallel_for(count, grain, std::cref(body));
}

}  // namespace inflight::cpu
