#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "kernels/cuda/skinny_linear.h"
#include "kernels/cuda/slim_linear.h"
#include "kernels/cuda/tiled_linear.h"

namespace inflight::cuda {

/// The sizes of one linear, linear_gated or linear_add.
struct LinearKey {
  int64_t m = 0, n = 0, k = 0;  // n counts outputs: a gated product's weight has 2 N rows
  bool float_out = false;
  bool bias = false;
  bool gated = false;
  bool add = false;  // to what out holds
  auto operator<=>(const LinearKey&) const = default;
};

/// cublasLtMatmulAlgo_t, opaque; good for one version of the library.
using CublasLtAlgorithm = std::array<uint64_t, 8>;

/// By which of the five ways a product is computed, and how.
struct LinearChoice {
  enum class Kind { kPlain, kSkinny, kCublasLt, kTiled, kSlim };
  Kind kind = Kind::kPlain;
  SkinnyVariant skinny{};         // kSkinny
  CublasLtAlgorithm algorithm{};  // kCublasLt
  TiledVariant tiled{};           // kTiled
  SlimVariant slim{};             // kSlim
};

/// "plain", "skinny ROWS SPLIT", "slim SPLIT BLOCKS", "tiled ROWS COLUMNS CLUSTER" or "cublaslt HEX", as the tuning
/// file keeps them.
std::string text_of(const LinearChoice& choice);
/// Nothing for any other text.
std::optional<LinearChoice> choice_of(const std::string& text);

/// "64 x 4096 x 4096 bfloat16 bias": M, N, K and what else tells products apart.
std::string text_of(const LinearKey& key);

/// The numbers of rows that are timed; a product takes the choice of the next one up.
std::span<const int> row_buckets();
int bucket_of(int64_t m);

}  // namespace inflight::cuda
