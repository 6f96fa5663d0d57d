#pragma once

#include <cstddef>

namespace inflight {

/// What a kernel may use besides its arguments. One per rank; a device derives from it (CpuContext: thread pool;
/// CUDA: stream, workspace, library handles).
struct DeviceContext {
  virtual ~DeviceContext() = default;

  /// Copies within the device's memory, in order with the kernels.
  virtual void copy(void* destination, const void* source, size_t bytes) = 0;
};

}  // namespace inflight
