#include <algorithm>
#include <bit>
#include <iterator>

#include "kernels/cuda/arguments.h"
#include "kernels/cuda/slim_kernel.cuh"
#include "kernels/cuda/slim_linear.h"
#include "kernels/cuda/tensor_map.h"

namespace inflight::cuda {
namespace {

using slim_linear_kernels::Args;
using slim_linear_kernels::kPanelColumns;
using slim_linear_kernels::kRows;
using slim_linear_kernels::kThreads;
using slim_linear_kernels::Shape;
using slim_linear_kernels::Shared;

struct KernelEntry {
  int tokens, blocks_per_sm;
  void (*kernel)(CUtensorMap, CUtensorMap, Args);
  int shared_bytes, most_split;
};

template <int kTokens, int kBlocksPerSm>
constexpr KernelEntry entry() {
  using S = Shape<kTokens, kBlocksPerSm>;
  static_assert(kBlocksPerSm * (sizeof(Shared<S>) + 1024) <= 228 * 1024);
  return {.tokens = kTokens,
          .blocks_per_sm = kBlocksPerSm,
          .kernel = slim_linear_kernels::slim_kernel<S>,
          .shared_bytes = sizeof(Shared<S>),
          .most_split = S::kPlaces};
}

constexpr KernelEntry kKernels[] = {
    entry<16, 1>(), entry<16, 2>(), entry<32, 1>(), entry<32, 2>(),
    entry<48, 1>(), entry<48, 2>(), entry<64, 1>(), entry<64, 2>(),
};
constexpr int kSplits[] = {1, 2, 4, 8};
constexpr int kChunk = Shape<kMaxSlimRows, 1>::kChunk;  // of every shape
constexpr int64_t kMostSize = int64_t{1} << 30;         // of 2 N and K: rows are counted in 32 bits
constexpr size_t kMaxMaps = 4096;                       // far more than a model's weights and buffers

int tokens_of(int64_t m) {
  int tokens = kMaxSlimRows;
  for (const KernelEntry& entry : kKernels)
    if (entry.tokens >= m) tokens = std::min(tokens, entry.tokens);
  return tokens;
}

const KernelEntry* find_kernel(int64_t m, int blocks_per_sm) {
  const auto* found = std::find_if(std::begin(kKernels), std::end(kKernels), [&](const KernelEntry& entry) {
    return entry.tokens == tokens_of(m) && entry.blocks_per_sm == blocks_per_sm;
  });
  return found == std::end(kKernels) ? nullptr : found;
}

int64_t tiles_of(int64_t n, bool gated) { return divide_up(n, gated ? kRows / 2 : kRows); }

}  // namespace

SlimLinear::SlimLinear(CudaContext& context) : context_(context) {
  for (const KernelEntry& entry : kKernels)
    check_cuda(cudaFuncSetAttribute(entry.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, entry.shared_bytes),
               "shared memory of a slim product's kernel");
}

bool SlimLinear::takes(int64_t m, int64_t n, int64_t k) {
  return m > 0 && m <= kMaxSlimRows && n > 0 && k > 0 && n % kVectorSize == 0 && k % kPanelColumns == 0 &&
         n < kMostSize / 2 && k < kMostSize;
}

std::vector<SlimVariant> SlimLinear::variants(int64_t m, int64_t k) {
  std::vector<SlimVariant> variants;
  for (const KernelEntry& entry : kKernels)
    for (const int split : kSplits) {
      const SlimVariant variant{split, entry.blocks_per_sm};
      if (entry.tokens == tokens_of(m) && has(variant, m, k)) variants.push_back(variant);
    }
  return variants;
}

bool SlimLinear::has(SlimVariant variant, int64_t m, int64_t k) {
  if (m <= 0 || m > kMaxSlimRows) return false;
  const KernelEntry* const entry = find_kernel(m, variant.blocks_per_sm);
  return entry && variant.split <= entry->most_split && divide_up(k, kChunk) >= variant.split &&
         std::find(std::begin(kSplits), std::end(kSplits), variant.split) != std::end(kSplits);
}

std::vector<SlimVariant> SlimLinear::candidates(int64_t m, int64_t n, int64_t k, bool gated) const {
  std::vector<SlimVariant> candidates;
  if (!takes(m, n, k)) return candidates;
  for (const SlimVariant variant : variants(m, k))
    if (variant.split == 1 || tiles_of(n, gated) * variant.split <= context_.num_sms() * variant.blocks_per_sm)
      candidates.push_back(variant);
  return candidates;
}

const CUtensorMap& SlimLinear::map_of(const void* data, int64_t rows, int64_t columns, int box_rows) {
  const std::tuple key(data, rows, columns, box_rows);
  if (const auto found = maps_.find(key); found != maps_.end()) return found->second;
  if (maps_.size() >= kMaxMaps) maps_.clear();
  return maps_.emplace(key, make_tensor_map(data, {columns, rows}, {kPanelColumns, box_rows})).first->second;
}

void SlimLinear::run(const SlimProblem& p, SlimVariant variant) {
  check(takes(p.m, p.n, p.k) && has(variant, p.m, p.k) && p.gated + p.float_out + p.add <= 1, ErrorCode::kInternal,
        "linear: no slim kernel of ", variant.split, " blocks a tile, ", variant.blocks_per_sm,
        " a multiprocessor, for M ", p.m, ", N ", p.n, ", K ", p.k, p.gated ? " gated" : "",
        p.float_out ? " float32" : "", p.add ? " added" : "");
  const KernelEntry& entry = *find_kernel(p.m, variant.blocks_per_sm);
  // The copy engine fills rows that a map lacks with zeros, slowly; rows that are there, whatever they hold, are
  // faster.
  const CUtensorMap x = map_of(p.x, std::max(p.m, std::min<int64_t>(p.x_rows, entry.tokens)), p.k, entry.tokens);
  const CUtensorMap weight = map_of(p.weight, p.gated ? 2 * p.n : p.n, p.k, kRows / 2);
  Args args{};
  args.bias = static_cast<const uint16_t*>(p.bias);
  args.out = p.out;
  args.m = static_cast<int>(p.m);
  args.n = static_cast<int>(p.n);
  args.k = static_cast<int>(p.k);
  args.split_log2 = std::countr_zero(static_cast<unsigned>(variant.split));
  args.activation = p.activation;
  args.gated = p.gated;
  args.float_out = p.float_out;
  args.add = p.add;
  launch_clusters(variant.split, entry.kernel, dim3(static_cast<unsigned>(tiles_of(p.n, p.gated) * variant.split)),
                  dim3(kThreads), static_cast<size_t>(entry.shared_bytes), context_, x, weight, args);
}

}  // namespace inflight::cuda
