#include <algorithm>
#include <array>
#include <iterator>

#include "kernels/cuda/arguments.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/tiled_kernel.cuh"
#include "kernels/cuda/tiled_linear.h"

namespace inflight::cuda {
namespace {

using tiled_linear_kernels::Args;
using tiled_linear_kernels::kChunk;
using tiled_linear_kernels::Shape;
using tiled_linear_kernels::Shared;

struct KernelEntry {
  TiledVariant variant;
  void (*kernels[2])(CUtensorMap, CUtensorMap, Args);  // plain, gated
  int threads, shared_bytes, blocks_per_sm;
};

template <int kRows, int kColumns, int kCluster>
constexpr KernelEntry entry() {
  using Plain = Shape<kRows, kColumns, kCluster, false>;
  using Gated = Shape<kRows, kColumns, kCluster, true>;
  return {.variant = {kRows, kColumns, kCluster},
          .kernels = {tiled_linear_kernels::tiled_kernel<Plain>, tiled_linear_kernels::tiled_kernel<Gated>},
          .threads = Plain::kThreads,
          .shared_bytes = sizeof(Shared<Plain>) + Plain::kAlignment,
          .blocks_per_sm = Plain::kBlocksPerSm};
}

// Of two that promise the same, the earlier one is tried first.
constexpr KernelEntry kKernels[] = {
    entry<128, 256, 2>(), entry<128, 256, 1>(), entry<128, 192, 2>(), entry<128, 192, 1>(), entry<128, 128, 2>(),
    entry<128, 128, 1>(), entry<128, 64, 1>(),  entry<64, 128, 1>(),  entry<64, 64, 1>(),
};
constexpr auto kVariants = [] {
  std::array<TiledVariant, std::size(kKernels)> variants;
  std::transform(std::begin(kKernels), std::end(kKernels), variants.begin(),
                 [](const KernelEntry& entry) { return entry.variant; });
  return variants;
}();

constexpr int64_t kMostSize = int64_t{1} << 30;  // of M, 2 N and K: rows are counted in 32 bits
constexpr int kBandRows = 2048;                  // of x, about as many as the tiles at work have columns
constexpr size_t kMostCandidates = 5;
constexpr size_t kMaxMaps = 4096;  // far more than a model's weights and buffers

const KernelEntry* find_kernel(TiledVariant variant) {
  const auto* found = std::find_if(std::begin(kKernels), std::end(kKernels),
                                   [&](const KernelEntry& entry) { return entry.variant == variant; });
  return found == std::end(kKernels) ? nullptr : found;
}

int64_t row_tiles(const TiledVariant& v, int64_t m) { return divide_up(divide_up(m, v.rows), v.cluster) * v.cluster; }
int64_t column_tiles(const TiledVariant& v, int64_t n, bool gated) {
  return divide_up(n, gated ? v.columns / 2 : v.columns);
}

// The busiest SM's cycles for a column of 16 of K, or what the L2 cache takes to bring the operands if that is longer.
double cost_of(const KernelEntry& entry, int64_t m, int64_t n, bool gated, int64_t sms) {
  constexpr double kProductsPerCycle = 128, kRowsPerCycle = 1.5;
  const TiledVariant& v = entry.variant;
  const int64_t slots = sms * entry.blocks_per_sm, tiles = row_tiles(v, m) * column_tiles(v, n, gated);
  const int64_t turns = tiles <= sms ? 1 : entry.blocks_per_sm * divide_up(tiles, slots);
  const double products = v.rows * v.columns / kProductsPerCycle;
  const double loads = (v.rows + v.columns / v.cluster) / kRowsPerCycle;
  return static_cast<double>(turns) * std::max(products, loads);
}

}  // namespace

TiledLinear::TiledLinear(CudaContext& context) : context_(context) {
  for (const KernelEntry& entry : kKernels)
    for (const auto kernel : entry.kernels)
      check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, entry.shared_bytes),
                 "shared memory of a tiled product's kernel");
}

bool TiledLinear::takes(int64_t m, int64_t n, int64_t k) {
  return m > 0 && n > 0 && k > 0 && n % 8 == 0 && k % kChunk == 0 && m < kMostSize && n < kMostSize / 2 &&
         k < kMostSize;
}

std::span<const TiledVariant> TiledLinear::variants() { return kVariants; }

bool TiledLinear::has(TiledVariant variant) { return find_kernel(variant) != nullptr; }

std::vector<TiledVariant> TiledLinear::candidates(int64_t m, int64_t n, int64_t k, bool gated) const {
  std::vector<TiledVariant> variants;
  if (!takes(m, n, k)) return variants;
  std::vector<std::pair<double, TiledVariant>> rated;
  for (const KernelEntry& entry : kKernels)
    if (m > entry.variant.rows * (entry.variant.cluster - 1))
      rated.push_back({cost_of(entry, m, n, gated, context_.num_sms()), entry.variant});
  std::stable_sort(rated.begin(), rated.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& [cost, variant] : rated)
    if (variants.size() < kMostCandidates) variants.push_back(variant);
  return variants;
}

const CUtensorMap& TiledLinear::map_of(const void* data, int64_t rows, int64_t columns, int box_rows) {
  const std::tuple key(data, rows, columns, box_rows);
  if (const auto found = maps_.find(key); found != maps_.end()) return found->second;
  if (maps_.size() >= kMaxMaps) maps_.clear();
  return maps_.emplace(key, make_tensor_map(data, {columns, rows}, {kChunk, box_rows})).first->second;
}

void TiledLinear::run(const TiledProblem& p, TiledVariant variant) {
  const KernelEntry* const entry = find_kernel(variant);
  check(entry && takes(p.m, p.n, p.k) && p.gated + p.float_out + p.add <= 1, ErrorCode::kInternal,
        "linear: no tiled kernel of ", variant.rows, " x ", variant.columns, ", clusters of ", variant.cluster,
        " for M ", p.m, ", N ", p.n, ", K ", p.k, p.gated ? " gated" : "", p.float_out ? " float32" : "",
        p.add ? " added" : "");
  const CUtensorMap x = map_of(p.x, p.m, p.k, variant.rows);
  const CUtensorMap weight = map_of(p.weight, p.gated ? 2 * p.n : p.n, p.k, variant.columns / 2);
  Args args{};
  args.bias = static_cast<const uint16_t*>(p.bias);
  args.out = p.out;
  args.m = static_cast<int>(p.m);
  args.n = static_cast<int>(p.n);
  args.k = static_cast<int>(p.k);
  args.column_tiles = static_cast<int>(column_tiles(variant, p.n, p.gated));
  args.row_units = static_cast<int>(row_tiles(variant, p.m) / variant.cluster);
  args.band = kBandRows / (variant.rows * variant.cluster);
  args.activation = p.activation;
  args.float_out = p.float_out;
  args.add = p.add;

  const int64_t units = int64_t{args.column_tiles} * args.row_units;
  const int64_t clusters = std::min<int64_t>(units, context_.num_sms() * entry->blocks_per_sm / variant.cluster);
  launch_clusters(variant.cluster, entry->kernels[p.gated], dim3(static_cast<unsigned>(clusters * variant.cluster)),
                  dim3(static_cast<unsigned>(entry->threads)), static_cast<size_t>(entry->shared_bytes), context_, x,
                  weight, args);
}

}  // namespace inflight::cuda
