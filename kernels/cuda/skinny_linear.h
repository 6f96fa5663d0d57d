#pragma once

#include <cuda.h>

#include <unordered_map>
#include <vector>

#include "inflight/ops/linear.h"
#include "kernels/cuda/cuda.h"

/// x · weightᵀ for few rows of x, where reading the weight is all the time there is: it streams through shared memory
/// by the copy engine and begins before the previous kernel has ended; the tensor cores multiply it with x.
namespace inflight::cuda {

inline constexpr int kMaxSkinnyRows = 32;  // rows of x

/// How the work is cut: tiles of `rows` rows of the weight, each for one block, or for a cluster of `split` blocks that
/// share the sum over K.
struct SkinnyVariant {
  int rows = 0;
  int split = 1;
  bool operator==(const SkinnyVariant&) const = default;
};

/// One product. Gated: weight = [Wg; Wu] of 2 N rows, out = activation(x · Wgᵀ) · (x · Wuᵀ), both rounded to bfloat16
/// before they are multiplied, as separate ops would.
struct SkinnyProblem {
  const void* x;       // [M, K] bfloat16, 16-byte aligned
  const void* weight;  // [N, K] or [2 N, K] bfloat16, 16-byte aligned
  const void* bias;    // [N] bfloat16 or null; null if gated
  void* out;           // [M, N] bfloat16 or float32
  int64_t m, n, k;
  bool float_out = false;
  bool gated = false;
  Activation activation = Activation::kSilu;
  int64_t x_rows = 0;  // rows that may be read from x on, where more than M
  bool add = false;    // to what out holds; the product is rounded to bfloat16 before. Not with float_out or gated
};

class SkinnyLinear {
 public:
  explicit SkinnyLinear(CudaContext& context);

  /// Whether any variant computes a product of these sizes: 0 < M <= kMaxSkinnyRows, K a multiple of 64.
  static bool takes(int64_t m, int64_t k);
  static bool has(SkinnyVariant variant, int64_t m, bool gated);
  /// The variants worth timing, the most promising first. `n` counts outputs.
  std::vector<SkinnyVariant> candidates(int64_t m, int64_t n, int64_t k, bool gated) const;

  /// Throws Error(kInternal) for a variant that has() denies or sizes that takes() denies.
  void run(const SkinnyProblem& problem, SkinnyVariant variant);

 private:
  struct MapKey {
    const void* data;       // [rows, columns] bfloat16
    int64_t rows, columns;  // columns a multiple of 64
    int box_rows;
    int box_groups;  // of 64 columns; more than one: a map of three dimensions
    bool operator==(const MapKey&) const = default;
  };
  struct MapHash {
    size_t operator()(const MapKey& key) const;
  };

  const CUtensorMap& map_of(const MapKey& key);

  CudaContext& context_;
  void* encode_ = nullptr;  // the driver's cuTensorMapEncodeTiled
  std::unordered_map<MapKey, CUtensorMap, MapHash> maps_;
};

}  // namespace inflight::cuda
