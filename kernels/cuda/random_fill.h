#pragma once

#include <cstdint>

#include "kernels/cuda/cuda.h"

namespace inflight::cuda {

/// out[i] = mean + spread · (about normal), bfloat16; a function of (seed, i) alone.
void fill_random(void* out, int64_t count, uint64_t seed, float mean, float spread, CudaContext& context);

}  // namespace inflight::cuda
