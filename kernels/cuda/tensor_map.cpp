#include "kernels/cuda/tensor_map.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>

#include "kernels/cuda/check.h"

namespace inflight::cuda {
namespace {

// Found through the runtime, so that nothing links to the driver's library.
PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  static const auto found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result),
               "the driver cannot be asked for cuTensorMapEncodeTiled");
    check(result == cudaDriverEntryPointSuccess, ErrorCode::kUnavailable, "the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  return found;
}

}  // namespace

CUtensorMap make_tensor_map(const void* data, std::initializer_list<int64_t> shape, std::initializer_list<int> box) {
  constexpr size_t kMaxRank = 5;
  std::array<cuuint64_t, kMaxRank> sizes{}, strides{};
  std::array<cuuint32_t, kMaxRank> boxes{}, steps{};
  check(shape.size() == box.size() && shape.size() <= kMaxRank, ErrorCode::kInternal, "a tensor map of ", shape.size(),
        " dimensions with a box of ", box.size());
  std::copy(shape.begin(), shape.end(), sizes.begin());
  std::copy(box.begin(), box.end(), boxes.begin());
  steps.fill(1);
  cuuint64_t stride = 2;
  for (size_t i = 0; i + 1 < shape.size(); ++i) strides[i] = stride *= sizes[i];
  CUtensorMap map;
  const CUresult status =
      encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, static_cast<cuuint32_t>(shape.size()), const_cast<void*>(data),
                sizes.data(), strides.data(), boxes.data(), steps.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(status == CUDA_SUCCESS, ErrorCode::kUnsupported, "the copy engine cannot read the tensor at ", data,
        " with rows of ", sizes[0], " elements, ", sizes[1], " of them (CUresult ", static_cast<int>(status), ")");
  return map;
}

}  // namespace inflight::cuda
