#include "kernels/cuda/cublaslt.h"

#include <dlfcn.h>

#include <bit>
#include <filesystem>
#include <string>
#include <vector>

#include "kernels/cuda/check.h"

namespace inflight::cuda {
namespace {

constexpr size_t kWorkspaceBytes = size_t{64} << 20;
constexpr uint32_t kAlignment = 16;  // of every pointer

// By name: where the loader searches (LD_LIBRARY_PATH, RUNPATH, its cache); then where the headers lay when this was
// built, the toolkit's usual folder, and the wheel nvidia-cublas installed beside this library's package.
std::vector<std::string> library_places() {
  const std::string name = "libcublasLt.so.13";
  std::vector<std::string> places = {name, INFLIGHT_CUBLAS_LIBRARY_DIR "/" + name, "/usr/local/cuda/lib64/" + name};
  Dl_info self{};
  if (dladdr(reinterpret_cast<const void*>(&library_places), &self) == 0) return places;
  std::filesystem::path folder = std::filesystem::absolute(self.dli_fname).parent_path();
  for (int level = 0; level < 3; ++level) {
    folder = folder.parent_path();
    places.push_back((folder / "nvidia" / "cu13" / "lib" / name).string());
  }
  return places;
}

void* open_library() {
  std::string tried;
  for (const std::string& place : library_places()) {
    if (void* library = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
    tried += concat(tried.empty() ? "" : "; ", dlerror());
  }
  throw Error(ErrorCode::kUnavailable,
              concat("cuBLASLt 13 cannot be loaded (is its folder in LD_LIBRARY_PATH?): ", tried));
}

const cublasLtMatmulAlgo_t* unpacked(const CublasLtAlgorithm& algorithm) {
  static_assert(sizeof(cublasLtMatmulAlgo_t) == sizeof(CublasLtAlgorithm));
  return reinterpret_cast<const cublasLtMatmulAlgo_t*>(algorithm.data());
}

template <typename Function>
void load(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  check(function != nullptr, ErrorCode::kUnavailable, "libcublasLt.so.13 has no ", name);
}

}  // namespace

CublasLtLibrary::CublasLtLibrary() : library_(open_library()) {
  load(library_, "cublasLtCreate", create);
  load(library_, "cublasLtDestroy", destroy);
  load(library_, "cublasLtGetVersion", version);
  load(library_, "cublasLtMatmul", matmul);
  load(library_, "cublasLtMatmulAlgoGetHeuristic", heuristic);
  load(library_, "cublasLtMatmulAlgoCheck", check_algorithm);
  load(library_, "cublasLtMatmulAlgoConfigGetAttribute", algorithm_attribute);
  load(library_, "cublasLtMatmulDescCreate", create_operation);
  load(library_, "cublasLtMatmulDescDestroy", destroy_operation);
  load(library_, "cublasLtMatmulDescSetAttribute", set_operation);
  load(library_, "cublasLtMatrixLayoutCreate", create_layout);
  load(library_, "cublasLtMatrixLayoutDestroy", destroy_layout);
  load(library_, "cublasLtMatmulPreferenceCreate", create_preference);
  load(library_, "cublasLtMatmulPreferenceDestroy", destroy_preference);
  load(library_, "cublasLtMatmulPreferenceSetAttribute", set_preference);
}

// The library stays loaded: the driver may still hold its kernels.
CublasLtLibrary::~CublasLtLibrary() = default;

// The library's matrices are column-major, so it computes outᵀ[N, M] = weight[K, N]ᵀ · xᵀ[K, M].
struct CublasLt::Descriptors {
  Descriptors(const CublasLtLibrary& library, const GemmProblem& p) : library(library) {
    const cudaDataType_t out_type = p.float_out ? CUDA_R_32F : CUDA_R_16BF;
    library.create_operation(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    if (p.bias) {
      set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUDA_R_16BF);
    }
    library.create_layout(&weight, CUDA_R_16BF, p.k, p.n, p.k);
    library.create_layout(&x, CUDA_R_16BF, p.k, p.m, p.k);
    library.create_layout(&out, out_type, p.n, p.m, p.n);
  }
  ~Descriptors() {
    for (const cublasLtMatrixLayout_t layout : {weight, x, out}) library.destroy_layout(layout);
    library.destroy_operation(operation);
  }
  template <typename Value>
  void set(cublasLtMatmulDescAttributes_t attribute, const Value& value) const {
    library.set_operation(operation, attribute, &value, sizeof value);
  }

  const CublasLtLibrary& library;
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t weight = nullptr, x = nullptr, out = nullptr;
};

CublasLt::CublasLt(CudaContext& context) : context_(context), workspace_(kWorkspaceBytes) {
  const cublasStatus_t status = library_.create(&handle_);
  check(status == CUBLAS_STATUS_SUCCESS, ErrorCode::kUnavailable, "cuBLASLt does not start: status ",
        static_cast<int>(status));
}

CublasLt::~CublasLt() {
  descriptors_.clear();
  library_.destroy(handle_);
}

const CublasLt::Descriptors& CublasLt::descriptors(const GemmProblem& problem) {
  std::unique_ptr<Descriptors>& slot = descriptors_[problem];
  if (!slot) slot = std::make_unique<Descriptors>(library_, problem);
  return *slot;
}

std::vector<CublasLtAlgorithm> CublasLt::heuristics(const GemmProblem& problem, int most) {
  const Descriptors& d = descriptors(problem);
  cublasLtMatmulPreference_t preference = nullptr;
  library_.create_preference(&preference);
  const size_t workspace = workspace_.bytes();
  library_.set_preference(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
  for (const auto operand : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                             CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
    library_.set_preference(preference, operand, &kAlignment, sizeof kAlignment);
  std::vector<cublasLtMatmulHeuristicResult_t> results(most);
  int found = 0;
  const cublasStatus_t status =
      library_.heuristic(handle_, d.operation, d.weight, d.x, d.out, d.out, preference, most, results.data(), &found);
  library_.destroy_preference(preference);
  std::vector<CublasLtAlgorithm> algorithms;
  if (status != CUBLAS_STATUS_SUCCESS) return algorithms;
  for (int i = 0; i < found; ++i)
    if (results[i].state == CUBLAS_STATUS_SUCCESS)
      algorithms.push_back(std::bit_cast<CublasLtAlgorithm>(results[i].algo));
  return algorithms;
}

bool CublasLt::accepts(const GemmProblem& problem, const CublasLtAlgorithm& algorithm) {
  const Descriptors& d = descriptors(problem);
  cublasLtMatmulHeuristicResult_t result{};
  const cublasStatus_t status =
      library_.check_algorithm(handle_, d.operation, d.weight, d.x, d.out, d.out, unpacked(algorithm), &result);
  return status == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= workspace_.bytes();
}

bool CublasLt::sums_in_one_block(const CublasLtAlgorithm& algorithm) const {
  int32_t split = 0;
  uint32_t reduction = 0;
  size_t written = 0;
  library_.algorithm_attribute(unpacked(algorithm), CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &split, sizeof split, &written);
  library_.algorithm_attribute(unpacked(algorithm), CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &reduction, sizeof reduction,
                               &written);
  return split <= 1 && reduction == CUBLASLT_REDUCTION_SCHEME_NONE;
}

void CublasLt::check_status(cublasStatus_t status, const char* what, const GemmProblem& problem) const {
  check(status == CUBLAS_STATUS_SUCCESS, ErrorCode::kInternal, what, " of M ", problem.m, ", N ", problem.n, ", K ",
        problem.k, ": cuBLASLt status ", static_cast<int>(status));
}

void CublasLt::run(const GemmProblem& problem, const CublasLtAlgorithm& algorithm, const void* x, const void* weight,
                   const void* bias, void* out) {
  const Descriptors& d = descriptors(problem);
  if (problem.bias) d.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  const float one = 1.0f, old_share = problem.add ? 1.0f : 0.0f;
  check_status(library_.matmul(handle_, d.operation, &one, weight, d.weight, x, d.x, &old_share, out, d.out, out, d.out,
                               unpacked(algorithm), workspace_.data(), workspace_.bytes(), context_.stream()),
               "a matrix product", problem);
}

}  // namespace inflight::cuda
