#include "kernels/cpu/signature.h"

#include <algorithm>

namespace inflight::cpu {
namespace {

// "[M=3, K]": a dimension's value is shown once known.
std::string text_of(Dims dims) {
  std::string text = "[";
  for (const Dim& dim : dims) {
    if (text.size() > 1) text += ", ";
    text += dim.name;
    if (dim.value >= 0) text += concat("=", dim.value);
  }
  return text + "]";
}

std::string text_of(DTypes dtypes) {
  std::string text;
  for (const DType* dtype = dtypes.begin(); dtype != dtypes.end(); ++dtype) {
    if (dtype != dtypes.begin()) text += dtype + 1 == dtypes.end() ? " or " : ", ";
    text += name_of(*dtype);
  }
  return text;
}

}  // namespace

bool Signature::matches(const TensorView& view, Dims dims) const {
  if (view.rank != static_cast<int>(dims.size())) return false;
  const int64_t* size = view.shape.data();
  return std::all_of(dims.begin(), dims.end(), [&](const Dim& dim) {
    const int64_t found = *size++;
    return found >= 0 && (dim.value < 0 || dim.value == found);
  });
}

void Signature::fail(ErrorCode code, const char* name, const TensorView& view, Dims dims, DTypes dtypes) const {
  throw Error(code, concat(op_, ": ", name, " is ", view.rank ? describe(view) : "absent", ", wanted ", text_of(dims),
                           " ", text_of(dtypes)));
}

Signature& Signature::view(const char* name, const TensorView& view, Dims dims, DTypes dtypes) {
  if (!matches(view, dims)) fail(ErrorCode::kInvalidArgument, name, view, dims, dtypes);
  if (std::find(dtypes.begin(), dtypes.end(), view.dtype) == dtypes.end())
    fail(ErrorCode::kUnsupported, name, view, dims, dtypes);
  const int64_t* size = view.shape.data();
  for (Dim& dim : dims) dim.value = *size++;
  check(view.data || view.elements() == 0, ErrorCode::kInvalidArgument, op_, ": ", name, " ", describe(view),
        " has no memory");
  return *this;
}

Signature& Signature::optional(const char* name, const TensorView& view, Dims dims, DTypes dtypes) {
  return view ? this->view(name, view, dims, dtypes) : *this;
}

Signature& Signature::cache(const KvCacheView& cache, Dims dims) {
  return view("cache keys", cache.keys, dims, kReal).view("cache values", cache.values, dims, {cache.keys.dtype});
}

}  // namespace inflight::cpu
