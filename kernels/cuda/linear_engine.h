#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/linear_choice.h"
#include "kernels/cuda/skinny_linear.h"
#include "kernels/cuda/tiled_linear.h"

namespace inflight::cuda {

class CublasLt;

/// The memory of one product; all bfloat16 but for a float32 out.
struct LinearMemory {
  const void* x;       // [M, K]
  const void* weight;  // [N, K] or [2 N, K]
  const void* bias;    // [N] or null
  void* scratch;       // [M, 2 N] if gated; the own kernels need none
  void* out;           // [M, N]; holds the other summand where the product is added
  Activation activation = Activation::kSilu;
  int64_t x_rows = 0;  // rows that may be read from x on, where more than M
};

/// Computes products by a choice, and remembers the choices of one context.
class LinearEngine {
 public:
  explicit LinearEngine(CudaContext& context);
  ~LinearEngine();

  /// GPU, library and version of what a tuned choice is good for.
  const std::string& machine() const { return machine_; }

  /// Every choice worth timing, none of which run() refuses.
  std::vector<LinearChoice> candidates(const LinearKey& key);
  bool accepts(const LinearKey& key, const LinearChoice& choice);
  /// What timing has found for a bucket's key; for keys whose M is a bucket.
  void set_tuned(const LinearKey& key, const LinearChoice& choice) { tuned_[key] = choice; }

  /// The choice for these sizes: the tuned one, else a guess; or the batch-invariant one.
  const LinearChoice& choose(const LinearKey& key);
  void run(const LinearKey& key, const LinearMemory& memory, const LinearChoice& choice);

 private:
  LinearChoice make_choice(const LinearKey& key);
  LinearChoice invariant_choice(const LinearKey& key);
  LinearChoice find_invariant(const LinearKey& key);

  CudaContext& context_;
  SkinnyLinear skinny_;
  SlimLinear slim_;
  TiledLinear tiled_;
  std::unique_ptr<CublasLt> cublaslt_;
  std::string machine_;
  std::map<LinearKey, LinearChoice> tuned_, chosen_, invariant_;
};

}  // namespace inflight::cuda
