#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "inflight/error.h"

namespace inflight {

enum class DType : uint8_t { kFloat32, kFloat16, kBfloat16, kInt32, kInt64, kUInt8 };

constexpr size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
    case DType::kInt32: return 4;
    case DType::kFloat16:
    case DType::kBfloat16: return 2;
    case DType::kInt64: return 8;
    case DType::kUInt8: return 1;
  }
  return 0;
}

constexpr std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return "float32";
    case DType::kFloat16: return "float16";
    case DType::kBfloat16: return "bfloat16";
    case DType::kInt32: return "int32";
    case DType::kInt64: return "int64";
    case DType::kUInt8: return "uint8";
  }
  return "?";
}

/// A typed view of memory that somebody else owns: contiguous, row-major, at most four dimensions.
/// A default-constructed view is "absent" (an optional argument that was not given).
struct TensorView {
  static constexpr int kMaxRank = 4;

  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape{};

  TensorView() = default;
  TensorView(void* data, DType dtype, std::initializer_list<int64_t> dims) : data(data), dtype(dtype) {
    check(dims.size() <= kMaxRank, ErrorCode::kInternal, "a tensor view has at most 4 dimensions, got ", dims.size());
    for (int64_t dim : dims) shape[rank++] = dim;
  }

  explicit operator bool() const { return data != nullptr; }

  int64_t elements() const {
    int64_t count = 1;
    for (int i = 0; i < rank; ++i) count *= shape[i];
    return count;
  }

  size_t bytes() const { return static_cast<size_t>(elements()) * size_of(dtype); }

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

/// "[4, 256] float32", for error texts.
inline std::string describe(const TensorView& view) {
  std::string text = "[";
  for (int i = 0; i < view.rank; ++i) text += (i ? ", " : "") + std::to_string(view.shape[i]);
  return text + "] " + std::string(name_of(view.dtype));
}

}  // namespace inflight
