#pragma once

#include <cublasLt.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/gemm_problem.h"
#include "kernels/cuda/linear_choice.h"

namespace inflight::cuda {

/// The library, loaded when first needed: it is half a gigabyte, and a machine without a GPU has none.
/// Throws Error(kUnavailable) naming the places that were tried.
class CublasLtLibrary {
 public:
  CublasLtLibrary();
  ~CublasLtLibrary();
  CublasLtLibrary(const CublasLtLibrary&) = delete;
  CublasLtLibrary& operator=(const CublasLtLibrary&) = delete;

  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtDestroy) destroy = nullptr;
  decltype(&cublasLtGetVersion) version = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic = nullptr;
  decltype(&cublasLtMatmulAlgoCheck) check_algorithm = nullptr;
  decltype(&cublasLtMatmulAlgoConfigGetAttribute) algorithm_attribute = nullptr;
  decltype(&cublasLtMatmulDescCreate) create_operation = nullptr;
  decltype(&cublasLtMatmulDescDestroy) destroy_operation = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) set_operation = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) create_layout = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) destroy_layout = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) create_preference = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) destroy_preference = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference = nullptr;

 private:
  void* library_ = nullptr;
};

/// Matrix products through cuBLASLt, for pointers aligned to 16 bytes.
class CublasLt {
 public:
  explicit CublasLt(CudaContext& context);
  ~CublasLt();

  size_t version() const { return library_.version(); }

  /// The library's own choices for these sizes, the most promising first; empty if it cannot compute them.
  std::vector<CublasLtAlgorithm> heuristics(const GemmProblem& problem, int most);
  /// Whether the algorithm computes these sizes within the workspace.
  bool accepts(const GemmProblem& problem, const CublasLtAlgorithm& algorithm);
  /// Whether the sum over K is taken by one block alone, in one order.
  bool sums_in_one_block(const CublasLtAlgorithm& algorithm) const;

  /// Throws Error(kInternal) with the library's status.
  void run(const GemmProblem& problem, const CublasLtAlgorithm& algorithm, const void* x, const void* weight,
           const void* bias, void* out);

 private:
  struct Descriptors;

  const Descriptors& descriptors(const GemmProblem& problem);
  void check_status(cublasStatus_t status, const char* what, const GemmProblem& problem) const;

  CudaContext& context_;
  CublasLtLibrary library_;
  cublasLtHandle_t handle_ = nullptr;
  DeviceMemory workspace_;
  std::map<GemmProblem, std::unique_ptr<Descriptors>> descriptors_;
};

}  // namespace inflight::cuda
