#include <cudaTypedefs.h>

#include <algorithm>

#include "kernels/cuda/arguments.h"
#include "kernels/cuda/skinny_kernel.cuh"
#include "kernels/cuda/skinny_linear.h"

namespace inflight::cuda {
namespace {

struct KernelEntry {
  int tokens, rows;
  void (*kernel)(CUtensorMap, CUtensorMap, SkinnyKernelArgs);
  int threads, boxes, shared_bytes, blocks_per_sm;
};

template <int kTokens, int kRows>
constexpr KernelEntry entry() {
  using Shape = SkinnyShape<kTokens, kRows>;
  return {.tokens = kTokens,
          .rows = kRows,
          .kernel = skinny_kernel<kTokens, kRows>,
          .threads = Shape::kThreads,
          .boxes = Shape::kBoxes,
          .shared_bytes = Shape::kSharedBytes,
          .blocks_per_sm = Shape::kBlocksPerSm};
}

constexpr KernelEntry kKernels[] = {
    entry<8, 8>(),   entry<8, 16>(),  entry<8, 24>(),  entry<8, 32>(),  entry<8, 48>(),
    entry<8, 64>(),  entry<16, 16>(), entry<16, 24>(), entry<16, 32>(), entry<16, 48>(),
    entry<16, 64>(), entry<32, 16>(), entry<32, 32>(), entry<32, 48>(), entry<32, 64>(),
};
constexpr int kSplits[] = {1, 2, 4};
constexpr int64_t kGroup = 64;         // columns: 128 bytes, the copy engine's widest swizzle
constexpr int64_t kLeastSplitK = 512;  // columns of a block
constexpr size_t kMaxMaps = 4096;      // far more than a model's weights and buffers

int tokens_of(int64_t m) {
  int tokens = 8;
  while (tokens < m) tokens *= 2;
  return tokens;
}

const KernelEntry* find_kernel(int64_t m, int rows) {
  const auto* found = std::find_if(std::begin(kKernels), std::end(kKernels), [&](const KernelEntry& entry) {
    return entry.tokens == tokens_of(m) && entry.rows == rows;
  });
  return found == std::end(kKernels) ? nullptr : found;
}

// A gated tile's halves are copied apart, each a whole number of the swizzle's 8 rows.
bool fits_gate(int rows) { return rows % 16 == 0; }

// Bytes through the busiest SM: its rows of the weight, and x once a tile, which the L2 cache serves at twice the
// speed.
double cost_of(const KernelEntry& entry, int split, int64_t blocks, int64_t k, int64_t sms) {
  const int64_t turns = blocks <= sms ? 1 : entry.blocks_per_sm * divide_up(blocks, entry.blocks_per_sm * sms);
  return static_cast<double>(turns) * (entry.rows + 0.5 * entry.tokens) * static_cast<double>(k) / split;
}

}  // namespace

SkinnyLinear::SkinnyLinear(CudaContext& context) : context_(context) {
  cudaDriverEntryPointQueryResult found{};
  check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode_, 12000, cudaEnableDefault, &found),
             "the driver cannot be asked for cuTensorMapEncodeTiled");
  check(found == cudaDriverEntryPointSuccess, ErrorCode::kUnavailable, "the driver has no cuTensorMapEncodeTiled");
  for (const KernelEntry& entry : kKernels)
    check_cuda(cudaFuncSetAttribute(entry.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, entry.shared_bytes),
               "shared memory of a skinny kernel");
}

bool SkinnyLinear::takes(int64_t m, int64_t k) { return m > 0 && m <= kMaxSkinnyRows && k > 0 && k % kGroup == 0; }

bool SkinnyLinear::has(SkinnyVariant variant, int64_t m, bool gated) {
  return m <= kMaxSkinnyRows && find_kernel(m, variant.rows) && (!gated || fits_gate(variant.rows)) &&
         std::find(std::begin(kSplits), std::end(kSplits), variant.split) != std::end(kSplits);
}

std::vector<SkinnyVariant> SkinnyLinear::candidates(int64_t m, int64_t n, int64_t k, bool gated) const {
  std::vector<std::pair<double, SkinnyVariant>> rated;
  const int64_t sms = context_.num_sms();
  for (const KernelEntry& entry : kKernels)
    for (const int split : kSplits) {
      if (!has({entry.rows, split}, m, gated) || entry.tokens != tokens_of(m)) continue;
      const int64_t blocks = divide_up(gated ? 2 * n : n, entry.rows) * split;
      if (split > 1 && (k / split < kLeastSplitK || blocks > sms * entry.blocks_per_sm)) continue;
      rated.push_back({cost_of(entry, split, blocks, k, sms), {entry.rows, split}});
    }
  std::stable_sort(rated.begin(), rated.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<SkinnyVariant> variants;
  for (const auto& [cost, variant] : rated) variants.push_back(variant);
  return variants;
}

size_t SkinnyLinear::MapHash::operator()(const MapKey& key) const {
  uint64_t hash = reinterpret_cast<uintptr_t>(key.data);
  for (const int64_t part : {key.rows, key.columns, int64_t{key.box_rows}, int64_t{key.box_groups}})
    hash = (hash ^ static_cast<uint64_t>(part)) * 0x9e3779b97f4a7c15u;
  return hash ^ hash >> 32;
}

const CUtensorMap& SkinnyLinear::map_of(const MapKey& key) {
  if (const auto found = maps_.find(key); found != maps_.end()) return found->second;
  if (maps_.size() >= kMaxMaps) maps_.clear();
  const bool groups = key.box_groups > 1;
  const auto rows = static_cast<cuuint64_t>(key.rows), columns = static_cast<cuuint64_t>(key.columns);
  const cuuint64_t sizes[] = {groups ? kGroup : columns, rows, columns / kGroup};
  const cuuint64_t strides[] = {columns * 2, kGroup * 2};
  const cuuint32_t box[] = {kGroup, static_cast<cuuint32_t>(key.box_rows), static_cast<cuuint32_t>(key.box_groups)};
  const cuuint32_t steps[] = {1, 1, 1};
  CUtensorMap map;
  const CUresult status = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(encode_)(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, groups ? 3 : 2, const_cast<void*>(key.data), sizes, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(status == CUDA_SUCCESS, ErrorCode::kInternal, "linear: the driver refuses a map of [", key.rows, ", ",
        key.columns, "] bfloat16 at ", key.data, " with error ", static_cast<int>(status));
  return maps_.emplace(key, map).first->second;
}

void SkinnyLinear::run(const SkinnyProblem& p, SkinnyVariant variant) {
  check(takes(p.m, p.k) && has(variant, p.m, p.gated), ErrorCode::kInternal, "linear: no skinny kernel of ",
        variant.rows, " rows and ", variant.split, " blocks a tile for M ", p.m, ", K ", p.k);
  const KernelEntry& entry = *find_kernel(p.m, variant.rows);
  const int tile_outputs = p.gated ? entry.rows / 2 : entry.rows;
  const CUtensorMap weight = map_of({p.weight, p.gated ? 2 * p.n : p.n, p.k, tile_outputs, 1});
  // The copy engine fills rows that a map lacks with zeros, slowly; rows that are there, whatever they hold, are
  // faster.
  const int64_t x_rows = std::max(p.m, std::min<int64_t>(p.x_rows, entry.tokens));
  const CUtensorMap x = map_of({p.x, x_rows, p.k, entry.tokens, entry.boxes});
  SkinnyKernelArgs args{};
  args.bias = static_cast<const uint16_t*>(p.bias);
  args.out = p.out;
  args.m = static_cast<int>(p.m);
  args.n = static_cast<int>(p.n);
  args.k = static_cast<int>(p.k);
  args.gate_rows = p.gated ? args.n : 0;
  args.tiles = static_cast<int>(divide_up(p.n, tile_outputs));
  args.split = variant.split;
  args.activation = p.activation;
  args.float_out = p.float_out;
  args.add = p.add;

  const int blocks =
      variant.split > 1 ? args.tiles * variant.split : std::min(args.tiles, context_.num_sms() * entry.blocks_per_sm);
  launch_clusters(variant.split, entry.kernel, dim3(static_cast<unsigned>(blocks)),
                  dim3(static_cast<unsigned>(entry.threads)), static_cast<size_t>(entry.shared_bytes), context_, weight,
                  x, args);
}

}  // namespace inflight::cuda
