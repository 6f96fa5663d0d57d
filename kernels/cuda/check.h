#pragma once

#include <cuda_runtime_api.h>

#include "inflight/error.h"

namespace inflight::cuda {

/// Throws Error(kUnavailable) for lack of memory, else Error(kInternal), naming what was tried.
inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  const ErrorCode code = status == cudaErrorMemoryAllocation ? ErrorCode::kUnavailable : ErrorCode::kInternal;
  throw Error(code, concat(what, ": ", cudaGetErrorName(status), ", ", cudaGetErrorString(status)));
}

}  // namespace inflight::cuda
