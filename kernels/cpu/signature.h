#pragma once

#include <functional>
#include <initializer_list>
#include <string>

#include "inflight/batch.h"
#include "inflight/tensor.h"

namespace inflight::cpu {

/// A symbolic dimension: takes the value of the first view it meets and holds every later one to it.
struct Dim {
  explicit Dim(const char* name, int64_t value = -1) : name(name), value(value) {}
  operator int64_t() const { return value; }

  const char* name;
  int64_t value;
};

using Dims = std::initializer_list<std::reference_wrapper<Dim>>;
using DTypes = std::initializer_list<DType>;

inline constexpr DTypes kFloat = {DType::kFloat32};
inline constexpr DTypes kInt = {DType::kInt32};
inline constexpr DTypes kReal = {DType::kFloat32, DType::kFloat16, DType::kBfloat16};

/// Checks the views of one call; a chain of its calls reads as the op's signature:
///   Signature("linear").view("x", x, {M, K}, kFloat).view("weight", weight, {N, K}, kReal)
/// A wrong shape or a missing view is kInvalidArgument, a wrong dtype kUnsupported.
class Signature {
 public:
  explicit Signature(const char* op) : op_(op) {}

  Signature& view(const char* name, const TensorView& view, Dims dims, DTypes dtypes);
  /// As view(), but an absent view passes.
  Signature& optional(const char* name, const TensorView& view, Dims dims, DTypes dtypes);
  Signature& cache(const KvCacheView& cache, Dims dims);

 private:
  bool matches(const TensorView& view, Dims dims) const;
  [[noreturn]] void fail(ErrorCode code, const char* name, const TensorView& view, Dims dims, DTypes dtypes) const;

  const char* op_;
};

}  // namespace inflight::cpu
