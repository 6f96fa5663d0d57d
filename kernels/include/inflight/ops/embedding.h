#pragma once

#include "inflight/device.h"
#include "inflight/tensor.h"

namespace inflight {

/// out[t] = table[ids[t]], converted to out's dtype; but out[virtual_tokens[i]] = virtual_rows[i]. The id of another
/// token outside [0, V) is an error (kInternal: the scheduler checks requests before they get here).
struct EmbeddingArgs {
  TensorView ids;             // [T] int32
  TensorView table;           // [V, H] float32, float16 or bfloat16
  TensorView out;             // [T, H]
  TensorView virtual_tokens;  // [R] int32, ascending, or absent
  TensorView virtual_rows;    // [R, H] of out's dtype
};

/// out[i] = in[rows[i]].
struct GatherRowsArgs {
  TensorView in;    // [T, H]
  TensorView rows;  // [L] int32
  TensorView out;   // [L, H], same dtype as in
};

}  // namespace inflight
