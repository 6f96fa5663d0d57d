#pragma once

#include <cuda.h>

#include <cstdint>
#include <initializer_list>

namespace inflight::cuda {

/// How the copy engine sees a contiguous bfloat16 tensor: boxes of it go to shared memory in rows of 64 columns (128
/// bytes) with the 128-byte swizzle, and what lies outside the tensor reads as zero. `shape` and `box` count elements,
/// innermost dimension first; box[0] is 64. Encoding is host arithmetic alone, no device work.
/// Throws Error: kUnsupported (address or row not of 16-byte steps, a dimension too large), kUnavailable (no driver).
CUtensorMap make_tensor_map(const void* data, std::initializer_list<int64_t> shape, std::initializer_list<int> box);

}  // namespace inflight::cuda
