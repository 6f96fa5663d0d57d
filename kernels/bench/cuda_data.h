#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "inflight/tensor.h"
#include "kernels/cuda/cuda.h"

/// What the cases of the GPU bench run on.
namespace inflight::bench {

/// Device memory that knows its shape.
struct Buffer {
  Buffer(DType dtype, std::initializer_list<int64_t> dims) : view(nullptr, dtype, dims), memory(view.bytes()) {
    view.data = memory.data();
  }
  operator TensorView() const { return view; }

  TensorView view;
  cuda::DeviceMemory memory;
};

/// Normal numbers times `scale` in bfloat16, different for every buffer: the clocks of a GPU that multiplies zeros are
/// higher than those of one that works.
Buffer random_buffer(std::initializer_list<int64_t> dims, float scale = 1.0f);

/// [values.size()] int32, or of `dims`, which must hold as many.
Buffer int_buffer(const std::vector<int32_t>& values, std::initializer_list<int64_t> dims = {});
Buffer float_buffer(const std::vector<float>& values);

/// How many buffers of `bytes` to rotate among. Large ones together exceed the L2 cache several times, so that every
/// run reads from memory; small ones are few, as in a model, where the kernel before has just left them in the cache.
int rotations_of(double bytes);

/// Reads all of `source` once and writes one number for every warp to `sums`.
void read_all(const Buffer& source, const Buffer& sums, cuda::CudaContext& context);

/// The least bytes of `sums` for `source`.
int64_t bytes_of_sums(const Buffer& source);

}  // namespace inflight::bench
