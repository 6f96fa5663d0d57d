#pragma once

#include "kernels/cpu/signature.h"
#include "kernels/cuda/cuda.h"

/// What the ops check of their arguments before a launch: the CPU kernels' signatures, with this device's dtypes.
namespace inflight::cuda {

using cpu::Dim;
using cpu::Dims;
using cpu::DTypes;
using cpu::kInt;
using cpu::Signature;

inline constexpr DTypes kBf16 = {DType::kBfloat16};
inline constexpr DTypes kFloat32 = {DType::kFloat32};

/// The op table hands every op the context it was given, which for these kernels is a CudaContext.
inline CudaContext& cuda_context(DeviceContext& device) { return static_cast<CudaContext&>(device); }

/// Whether rows of `row_bytes` bytes that begin there can be read and written 16 bytes at a time.
inline bool allows_vectors(size_t row_bytes, std::initializer_list<const void*> starts) {
  uintptr_t bits = row_bytes;
  for (const void* start : starts) bits |= reinterpret_cast<uintptr_t>(start);
  return bits % 16 == 0;
}

inline int64_t divide_up(int64_t size, int64_t part) { return (size + part - 1) / part; }

}  // namespace inflight::cuda
