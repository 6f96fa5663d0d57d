#pragma once

#include <cuda.h>

#include <map>
#include <span>
#include <tuple>
#include <vector>

#include "inflight/ops/activation.h"
#include "kernels/cuda/cuda.h"

/// x · weightᵀ for many rows of x, with the activation of a gated product, the bias and the rounding done before
/// anything goes to memory.
namespace inflight::cuda {

/// How the work is cut: tiles of `rows` rows of x by `columns` rows of the weight, each for one block; `cluster` blocks
/// of tiles one above the other read the weight together.
struct TiledVariant {
  int rows = 0;
  int columns = 0;
  int cluster = 1;
  bool operator==(const TiledVariant&) const = default;
};

/// One product. Gated: weight = [Wg; Wu] of 2 N rows, out = activation(x · Wgᵀ) · (x · Wuᵀ), both rounded to bfloat16
/// before they are multiplied, as separate ops would.
struct TiledProblem {
  const void* x;       // [M, K] bfloat16, 16-byte aligned
  const void* weight;  // [N, K] or [2 N, K] bfloat16, 16-byte aligned
  const void* bias;    // [N] bfloat16, 4-byte aligned, or null; null if gated
  void* out;           // [M, N] bfloat16, or float32 if not gated; 16-byte aligned
  int64_t m, n, k;
  bool float_out = false;
  bool gated = false;
  Activation activation = Activation::kSilu;
  bool add = false;  // the rounded product to what out holds
};

class TiledLinear {
 public:
  explicit TiledLinear(CudaContext& context);

  /// Whether any variant computes a product of these sizes: M > 0, N a multiple of 8, K one of 64.
  static bool takes(int64_t m, int64_t n, int64_t k);
  static std::span<const TiledVariant> variants();
  static bool has(TiledVariant variant);
  /// The variants worth timing, the most promising first. `n` counts outputs.
  std::vector<TiledVariant> candidates(int64_t m, int64_t n, int64_t k, bool gated) const;

  /// Throws Error(kInternal) for a variant that has() denies, sizes that takes() denies, or two of gated, float32 out
  /// and add at once.
  void run(const TiledProblem& problem, TiledVariant variant);

 private:
  const CUtensorMap& map_of(const void* data, int64_t rows, int64_t columns, int box_rows);

  CudaContext& context_;
  std::map<std::tuple<const void*, int64_t, int64_t, int>, CUtensorMap> maps_;
};

}  // namespace inflight::cuda
