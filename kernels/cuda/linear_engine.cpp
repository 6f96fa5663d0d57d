#include "kernels/cuda/linear_engine.h"

#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/plain_linear.h"

namespace inflight::cuda {
namespace {

using Kind = LinearChoice::Kind;

constexpr int kHeuristics = 16;
constexpr size_t kSkinnyCandidates = 10;
constexpr int kLeastSlimRows = 9;  // up to 8 the skinny kernels leave little to gain: README.md
constexpr int kSkinnyGuess = 16;   // untuned, rows up to which the own kernel is the better guess

bool slims_take(const LinearKey& key) {
  return key.m >= kLeastSlimRows && key.gated + key.float_out + key.add <= 1 && SlimLinear::takes(key.m, key.n, key.k);
}

// Fewer rows are the skinny and slim kernels' alone.
bool tiles_take(const LinearKey& key) {
  return key.m > kMaxSkinnyRows && key.gated + key.float_out + key.add <= 1 && TiledLinear::takes(key.m, key.n, key.k);
}

// A gated product is the ungated one of both halves and the activation after it. The library wants a float32 bias for
// a float32 out, so that one is added apart.
GemmProblem gemm_of(const LinearKey& key) {
  return {key.m, key.gated ? 2 * key.n : key.n, key.k, key.float_out, key.bias && !key.float_out, key.add};
}

std::string describe_machine(int device, size_t version) {
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, device), "the CUDA device cannot be asked");
  return concat(properties.name, ", cuBLASLt ", version);
}

}  // namespace

LinearEngine::LinearEngine(CudaContext& context)
    : context_(context),
      skinny_(context),
      slim_(context),
      tiled_(context),
      cublaslt_(std::make_unique<CublasLt>(context)),
      machine_(describe_machine(context.options().device, cublaslt_->version())) {}

LinearEngine::~LinearEngine() = default;

std::vector<LinearChoice> LinearEngine::candidates(const LinearKey& key) {
  std::vector<LinearChoice> choices;
  if (SkinnyLinear::takes(key.m, key.k)) {
    for (const SkinnyVariant variant : skinny_.candidates(key.m, key.n, key.k, key.gated)) {
      if (choices.size() < kSkinnyCandidates) choices.push_back({Kind::kSkinny, variant});
    }
  }
  if (slims_take(key)) {
    for (const SlimVariant variant : slim_.candidates(key.m, key.n, key.k, key.gated))
      choices.push_back({Kind::kSlim, {}, {}, {}, variant});
  }
  if (tiles_take(key)) {
    for (const TiledVariant variant : tiled_.candidates(key.m, key.n, key.k, key.gated))
      choices.push_back({Kind::kTiled, {}, {}, variant});
  }
  for (const CublasLtAlgorithm& algorithm : cublaslt_->heuristics(gemm_of(key), kHeuristics))
    choices.push_back({Kind::kCublasLt, {}, algorithm});
  if (choices.empty()) choices.push_back({Kind::kPlain});
  return choices;
}

bool LinearEngine::accepts(const LinearKey& key, const LinearChoice& choice) {
  switch (choice.kind) {
    case Kind::kPlain: return true;
    case Kind::kSkinny: return SkinnyLinear::takes(key.m, key.k) && SkinnyLinear::has(choice.skinny, key.m, key.gated);
    case Kind::kSlim: return slims_take(key) && SlimLinear::has(choice.slim, key.m, key.k);
    case Kind::kTiled: return tiles_take(key) && TiledLinear::has(choice.tiled);
    case Kind::kCublasLt: return cublaslt_->accepts(gemm_of(key), choice.algorithm);
  }
  return false;
}

const LinearChoice& LinearEngine::choose(const LinearKey& key) {
  if (const auto found = chosen_.find(key); found != chosen_.end()) return found->second;
  return chosen_[key] = context_.options().batch_invariant ? invariant_choice(key) : make_choice(key);
}

LinearChoice LinearEngine::make_choice(const LinearKey& key) {
  LinearKey bucket = key;
  bucket.m = bucket_of(key.m);
  if (const auto found = tuned_.find(bucket); found != tuned_.end() && accepts(key, found->second))
    return found->second;
  std::vector<LinearChoice> guesses = candidates(key);
  if (key.m <= kSkinnyGuess) return guesses.front();
  const auto library = std::find_if(guesses.begin(), guesses.end(),
                                    [](const LinearChoice& choice) { return choice.kind == Kind::kCublasLt; });
  return library == guesses.end() ? guesses.front() : *library;
}

// One algorithm for every M, whose blocks each take a whole sum: then a row's sums cannot depend on the other rows.
LinearChoice LinearEngine::invariant_choice(const LinearKey& key) {
  LinearKey any_rows = key;
  any_rows.m = 0;
  const auto found = invariant_.find(any_rows);
  return found != invariant_.end() ? found->second : invariant_[any_rows] = find_invariant(key);
}

LinearChoice LinearEngine::find_invariant(const LinearKey& key) {
  constexpr int64_t kTypicalRows = 256;
  if (key.k % 8 != 0) return {Kind::kPlain};
  GemmProblem gemm = gemm_of(key);
  gemm.m = kTypicalRows;
  for (const CublasLtAlgorithm& algorithm : cublaslt_->heuristics(gemm, kHeuristics)) {
    const bool fits_all = std::all_of(row_buckets().begin(), row_buckets().end(), [&](int rows) {
      GemmProblem other = gemm;
      other.m = rows;
      return cublaslt_->accepts(other, algorithm);
    });
    if (fits_all && cublaslt_->sums_in_one_block(algorithm)) return {Kind::kCublasLt, {}, algorithm};
  }
  return {Kind::kPlain};
}

void LinearEngine::run(const LinearKey& key, const LinearMemory& memory, const LinearChoice& choice) {
  if (choice.kind == Kind::kSkinny) {
    skinny_.run({memory.x, memory.weight, memory.bias, memory.out, key.m, key.n, key.k, key.float_out, key.gated,
                 memory.activation, memory.x_rows, key.add},
                choice.skinny);
    return;
  }
  if (choice.kind == Kind::kSlim) {
    slim_.run({memory.x, memory.weight, memory.bias, memory.out, key.m, key.n, key.k, key.float_out, key.gated,
               memory.activation, memory.x_rows, key.add},
              choice.slim);
    return;
  }
  if (choice.kind == Kind::kTiled) {
    tiled_.run({memory.x, memory.weight, memory.bias, memory.out, key.m, key.n, key.k, key.float_out, key.gated,
                memory.activation, key.add},
               choice.tiled);
    return;
  }
  const GemmProblem gemm = gemm_of(key);
  void* const out = key.gated ? memory.scratch : memory.out;
  if (choice.kind == Kind::kPlain) {
    plain_linear(memory.x, memory.weight, memory.bias, out, gemm, context_);
  } else {
    cublaslt_->run(gemm, choice.algorithm, memory.x, memory.weight, memory.bias, out);
    if (key.bias && !gemm.bias) add_bias(memory.bias, out, gemm.m, gemm.n, context_);
  }
  if (key.gated)
    gated_activation({{out, DType::kBfloat16, {key.m, 2 * key.n}},
                      {memory.out, DType::kBfloat16, {key.m, key.n}},
                      memory.activation},
                     context_);
}

}  // namespace inflight::cuda
