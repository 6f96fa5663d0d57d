#pragma once

#include <cuda.h>

#include <map>
#include <tuple>
#include <vector>

#include "inflight/ops/activation.h"
#include "kernels/cuda/cuda.h"

/// x · weightᵀ for so many rows of x that the tensor cores' wide products pay and so few that reading the weight is
/// still most of the time: the weight takes the tensor cores' 64 rows, x their columns.
namespace inflight::cuda {

inline constexpr int kMaxSlimRows = 64;  // rows of x

/// How the work is cut: tiles of 64 rows of the weight, each for a cluster of `split` blocks that share the sum over K;
/// `blocks_per_sm` blocks find place on a multiprocessor at a time.
struct SlimVariant {
  int split = 1;
  int blocks_per_sm = 0;
  bool operator==(const SlimVariant&) const = default;
};

/// One product. Gated: weight = [Wg; Wu] of 2 N rows, out = activation(x · Wgᵀ) · (x · Wuᵀ), both rounded to bfloat16
/// before they are multiplied, as separate ops would.
struct SlimProblem {
  const void* x;       // [M, K] bfloat16, 16-byte aligned
  const void* weight;  // [N, K] or [2 N, K] bfloat16, 16-byte aligned
  const void* bias;    // [N] bfloat16, 16-byte aligned, or null; null if gated
  void* out;           // [M, N] bfloat16, or float32 if not gated; 16-byte aligned
  int64_t m, n, k;
  bool float_out = false;
  bool gated = false;
  Activation activation = Activation::kSilu;
  int64_t x_rows = 0;  // rows that may be read from x on, where more than M
  bool add = false;    // the rounded product to what out holds
};

class SlimLinear {
 public:
  explicit SlimLinear(CudaContext& context);

  /// Whether any variant computes a product of these sizes: 0 < M <= kMaxSlimRows, N a multiple of 8, K one of 64.
  static bool takes(int64_t m, int64_t n, int64_t k);
  static bool has(SlimVariant variant, int64_t m, int64_t k);
  /// All that has() affirms.
  static std::vector<SlimVariant> variants(int64_t m, int64_t k);
  /// The variants worth timing. `n` counts outputs.
  std::vector<SlimVariant> candidates(int64_t m, int64_t n, int64_t k, bool gated) const;

  /// Throws Error(kInternal) for a variant that has() denies, sizes that takes() denies, or two of gated, float32 out
  /// and add at once.
  void run(const SlimProblem& problem, SlimVariant variant);

 private:
  const CUtensorMap& map_of(const void* data, int64_t rows, int64_t columns, int box_rows);

  CudaContext& context_;
  std::map<std::tuple<const void*, int64_t, int64_t, int>, CUtensorMap> maps_;
};

}  // namespace inflight::cuda
