#pragma once

#include <vector>

#include "inflight_batcher/engine/plan.h"
#include "inflight_batcher/engine/safetensors.h"

namespace inflight {

/// A source of a weight cut down to one rank's rectangle of the stored matrix (vectors are one column wide).
struct WeightPart {
  const SafetensorsFile* file = nullptr;
  const std::byte* data = nullptr;  // the stored matrix; aligned as its place in the file is
  DType dtype = DType::kFloat32;
  int64_t stored_columns = 1;
  int64_t row_start = 0, row_stop = 0;  // as stored, before transposition
  int64_t column_start = 0, column_stop = 0;
  bool transpose = false;
  int64_t whole_rows = 0, whole_columns = 0;  // of all ranks together, transposed

  int64_t rows() const { return transpose ? column_stop - column_start : row_stop - row_start; }
  int64_t columns() const { return transpose ? row_stop - row_start : column_stop - column_start; }
  bool contiguous() const { return !transpose && column_start == 0 && column_stop == stored_columns; }
  const std::byte* begin() const { return data + (row_start * stored_columns + column_start) * size_of(dtype); }
};

/// Writes rows [first, last) of a part (as they are after transposition), end to end, to `out`: as stored, or rounded
/// to bfloat16 (nearest, ties to even). Throws Error(kUnsupported) where a dtype cannot be converted.
void copy_rows(const WeightPart& part, int64_t first, int64_t last, DType wanted, std::byte* out);

}  // namespace inflight
