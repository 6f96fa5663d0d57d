#include <algorithm>
#include <bit>
#include <deque>

#include "kernels/cuda/arguments.h"
#include "kernels/cuda/attention_parts.h"
#include "kernels/cuda/generation_attention.cuh"
#include "kernels/cuda/generation_attention_plan.cuh"

namespace inflight::cuda {
namespace {

constexpr float kLog2e = 1.44269504f;
constexpr int kMaxPlans = 16;             // layers of different heads or windows in one step
constexpr int kMaxPlanBytes = 48 * 1024;  // of the plan kernel's shared memory
// (Sequence, head) pairs a block beyond which rotating in the attention, where each pair's first scores wait for it,
// takes longer than a kernel of its own: measured, README.md.
constexpr int kMostFusedPairs = 2;

enum class Mode { kPlain, kInvariant, kRope };
constexpr int kModes = 3;

using Run = void (*)(GenerationParams);

struct Kernel {
  int head_size;
  int head_tiles;    // of kHeadTile query heads, that a block takes at once
  Run runs[kModes];  // null: none
  int shared_bytes;
  int blocks_per_sm;

  int grid(const CudaContext& context) const { return context.num_sms() * blocks_per_sm; }
  Run run(Mode mode) const { return runs[static_cast<int>(mode)]; }
};

template <int D, int kHeadTiles>
constexpr Kernel kernel_of() {
  using Tile = GenerationTile<D, kHeadTiles>;
  Kernel kernel{D,
                kHeadTiles,
                {generation_attention_kernel<Tile, false, false>, generation_attention_kernel<Tile, true, false>},
                Tile::kBytes,
                Tile::kBlocksPerSm};
  if constexpr (D % 64 == 0)
    kernel.runs[static_cast<int>(Mode::kRope)] = generation_attention_kernel<Tile, false, true>;
  return kernel;
}

// By head size, fewer tiles first. Two of 256 elements would not fit into registers.
constexpr Kernel kKernels[] = {kernel_of<64, 1>(),  kernel_of<64, 2>(),  kernel_of<80, 1>(),
                               kernel_of<80, 2>(),  kernel_of<96, 1>(),  kernel_of<96, 2>(),
                               kernel_of<128, 1>(), kernel_of<128, 2>(), kernel_of<256, 1>()};

const Kernel& kernel_for(int64_t head_size, int64_t group) {
  const Kernel* last = nullptr;
  for (const Kernel& kernel : kKernels) {
    if (kernel.head_size != head_size) continue;
    last = &kernel;
    if (group <= kernel.head_tiles * kHeadTile) break;
  }
  check(last != nullptr, ErrorCode::kUnsupported, "attention: head size ", head_size,
        " is not among 64, 80, 96, 128 and 256");
  return *last;
}

/// The batch-invariant kernel is also the one that knows of sinks.
bool runs_invariant(int sinks, const CudaContext& context) { return context.options().batch_invariant || sinks > 0; }

/// Partial results of pairs that are cut between blocks, each word absent.
struct Scratch {
  Scratch(int64_t rows, int64_t elements, CudaContext& context)
      : rows(rows), elements(elements), sums(elements * sizeof(float)), stats(rows * sizeof(float2)) {
    for (const DeviceMemory* memory : {&sums, &stats})
      check_cuda(cudaMemsetAsync(memory->data(), 0xff, memory->bytes(), context.stream()),
                 "partial results cannot be cleared");
  }

  int64_t rows, elements;
  DeviceMemory sums, stats;
};

/// What layers must have in common to share a plan.
struct PlanKey {
  int heads, window, sinks, block_shift, grid;
  bool operator==(const PlanKey&) const = default;
};

/// The arrays that a plan was made from.
struct PlanSource {
  const void *lengths = nullptr, *tables = nullptr;
  int num_sequences = 0;
  bool operator==(const PlanSource&) const = default;
};

struct Plan {
  PlanKey key{};
  PlanSource source{};
  bool used = false;  // since the last plan_generation_attention
};

PlanSource source_of(const BatchView& batch) {
  return {batch.context_lengths.data, batch.block_tables.data, batch.num_generation};
}

/// What the kernels keep between calls: plans (kMaxPlans of 64 bytes a block: 541 kB on 132 multiprocessors) and
/// scratch memory. Usually one partial result a block bounds that (2.7 MB); in batch-invariant mode it is
/// max_batch_size sequences' Hq · 8 partial results of D + 2 floats (67 MB for 512 sequences, 32 heads of 128), made
/// when heads of a kind are first met, which must come before a graph is captured.
class GenerationState {
 public:
  explicit GenerationState(CudaContext& context) {
    int64_t rows = 0, elements = 0;
    for (const Kernel& kernel : kKernels) {
      for (const Run run : kernel.runs)
        if (run)
          check_cuda(cudaFuncSetAttribute(run, cudaFuncAttributeMaxDynamicSharedMemorySize, kernel.shared_bytes),
                     "generation attention cannot have its shared memory");
      max_grid_ = std::max(max_grid_, kernel.grid(context));
      const int64_t kernel_rows = static_cast<int64_t>(kernel.grid(context)) * kRowTile;
      rows = std::max(rows, kernel_rows);
      elements = std::max(elements, kernel_rows * kernel.head_size);
    }
    entries_ = DeviceMemory(static_cast<size_t>(kMaxPlans) * max_grid_ * sizeof(PlanEntry));
    scratch_.emplace_back(rows, elements, context);
  }

  /// Makes anew the plans that the last step used, and forgets the others.
  void replan(const BatchView& batch, CudaContext& context) {
    int kept = 0;
    for (int i = 0; i < num_plans_; ++i)
      if (plans_[i].used) plans_[kept++].key = plans_[i].key;
    num_plans_ = kept;
    for (int i = 0; i < num_plans_; ++i) make(i, batch, context);
  }

  const PlanEntry* plan(const PlanKey& key, const BatchView& batch, CudaContext& context) {
    const auto same = [&](const Plan& plan) { return plan.key == key; };
    const auto index = static_cast<int>(std::find_if(plans_, plans_ + num_plans_, same) - plans_);
    if (index == num_plans_) add(key);
    if (!(plans_[index].source == source_of(batch))) make(index, batch, context);
    plans_[index].used = true;
    return entries(index);
  }

  /// Scratch of at least this size. Earlier ones stay: graphs may hold them.
  Scratch& scratch(int64_t rows, int64_t elements, CudaContext& context) {
    for (Scratch& one : scratch_)
      if (one.rows >= rows && one.elements >= elements) return one;
    return scratch_.emplace_back(rows, elements, context);
  }

 private:
  PlanEntry* entries(int index) const { return entries_.as<PlanEntry>() + static_cast<int64_t>(index) * max_grid_; }

  void add(const PlanKey& key) {
    check(num_plans_ < kMaxPlans, ErrorCode::kUnsupported, "attention: more than ", kMaxPlans,
          " kinds of layers (heads, window) in one model");
    plans_[num_plans_++] = {key};
  }

  void make(int index, const BatchView& batch, CudaContext& context) {
    Plan& plan = plans_[index];
    plan.source = source_of(batch);
    plan.used = false;
    PlanParams p{};
    p.shape = {batch.context_lengths.as<int32_t>(), batch.num_generation, plan.key.heads, plan.key.window,
               plan.key.sinks};
    p.block_tables = batch.block_tables.as<int32_t>();
    p.table_width = static_cast<int>(batch.block_tables.shape[1]);
    p.block_shift = plan.key.block_shift;
    p.grid = plan.key.grid;
    p.entries = entries(index);
    const int bytes = (batch.num_generation + 1) * static_cast<int>(sizeof(int));
    check(bytes <= kMaxPlanBytes, ErrorCode::kUnsupported, "attention: ", batch.num_generation,
          " generating sequences, at most ", kMaxPlanBytes / sizeof(int) - 1, " in one step");
    const bool invariant = runs_invariant(plan.key.sinks, context);
    const auto run = invariant ? generation_plan_kernel<true> : generation_plan_kernel<false>;
    launch(run, dim3(1), dim3(kPlanThreads), bytes, context, p);
  }

  int max_grid_ = 0, num_plans_ = 0;
  Plan plans_[kMaxPlans];
  DeviceMemory entries_;  // [kMaxPlans, max_grid_] PlanEntry
  std::deque<Scratch> scratch_;
};

/// Query heads that share a KV head.
int64_t group_of(const AttentionArgs& args) {
  return args.q.shape[1] / args.cache.head_size() / args.cache.num_kv_heads();
}

void check_block_size(int64_t size) {
  check(size >= kSliceTokens && std::has_single_bit(static_cast<uint64_t>(size)), ErrorCode::kUnsupported,
        "attention: a KV block of ", size, " tokens, wanted a power of two from ", kSliceTokens);
}

GenerationParams params_of(const AttentionArgs& args, const BatchView& batch, const Kernel& kernel) {
  const KvCacheView& cache = args.cache;
  const auto kv_heads = static_cast<int>(cache.num_kv_heads());
  GenerationParams p{};
  p.kv_heads = kv_heads;
  p.group = static_cast<int>(group_of(args));
  p.row_tile = kernel.head_tiles * kHeadTile;
  p.row_tiles = static_cast<int>(divide_up(p.group, p.row_tile));
  p.shape = {batch.context_lengths.as<int32_t>(), batch.num_generation, kv_heads * p.row_tiles, args.window,
             args.window > 0 ? args.sinks : 0};
  p.q = args.q.as<uint16_t>();
  p.keys = cache.keys.as<uint16_t>();
  p.values = cache.values.as<uint16_t>();
  p.out = args.out.as<uint16_t>();
  p.block_tables = batch.block_tables.as<int32_t>();
  p.alibi_slopes = args.alibi_slopes.as<float>();
  p.block_shift = std::countr_zero(static_cast<uint64_t>(cache.block_size()));
  p.num_blocks = static_cast<int>(cache.num_blocks());
  p.table_width = static_cast<int>(batch.block_tables.shape[1]);
  p.scale = args.scale * kLog2e;
  p.cap = args.soft_cap * kLog2e;
  p.cap_scale = args.soft_cap > 0 ? 2 * p.scale / args.soft_cap : 0.0f;
  p.partial_rows = std::min(p.group, p.row_tile);
  return p;
}

}  // namespace

// The first step meets the layers' heads and windows while it runs; later ones have their plans made here.
void plan_generation_attention(const BatchView& batch, CudaContext& context) {
  auto& state = context.state<GenerationState>();
  if (batch.num_generation > 0) state.replan(batch, context);
}

namespace {

void run_generation(const AttentionArgs& args, const RopeKvWriteArgs* rope, const BatchView& batch,
                    CudaContext& context) {
  const KvCacheView& cache = args.cache;
  check_block_size(cache.block_size());
  const Kernel& kernel = kernel_for(cache.head_size(), group_of(args));
  GenerationParams p = params_of(args, batch, kernel);
  auto& state = context.state<GenerationState>();
  const bool invariant = runs_invariant(p.shape.sinks, context);
  const int grid = kernel.grid(context);
  const int sequences = std::max(context.options().max_batch_size, batch.num_generation);
  const int64_t slots = invariant ? static_cast<int64_t>(sequences) * p.shape.heads * kInvariantUnits : grid;
  Scratch& scratch = state.scratch(slots * p.partial_rows, slots * p.partial_rows * kernel.head_size, context);
  p.plan = state.plan({p.shape.heads, p.shape.window, p.shape.sinks, p.block_shift, grid}, batch, context);
  p.partial_sums = scratch.sums.as<float>();
  p.partial_stats = scratch.stats.as<float2>();
  if (rope) {
    p.q = rope->qkv.as<uint16_t>();
    p.rope = {rope->inverse_frequencies.as<float>(), rope->rope_scale, cache.keys.as<uint16_t>(),
              cache.values.as<uint16_t>()};
  }
  const Mode mode = invariant ? Mode::kInvariant : rope ? Mode::kRope : Mode::kPlain;
  launch(kernel.run(mode), dim3(grid), dim3(kGenerationThreads), kernel.shared_bytes, context, p);
}

}  // namespace

void generation_attention(const AttentionArgs& args, const BatchView& batch, CudaContext& context) {
  if (batch.num_generation > 0) run_generation(args, nullptr, batch, context);
}

bool takes_rope(const RopeKvWriteArgs& rope, const AttentionArgs& args, const BatchView& batch,
                const CudaContext& context) {
  const int64_t d = args.cache.head_size();
  const Kernel& kernel = kernel_for(d, group_of(args));
  const int64_t pairs = params_of(args, batch, kernel).shape.heads * int64_t{batch.num_generation};
  return !runs_invariant(args.window > 0 ? args.sinks : 0, context) && rope.inverse_frequencies &&
         rope.inverse_frequencies.shape[0] * 2 == d && !rope.interleaved && kernel.run(Mode::kRope) != nullptr &&
         pairs <= int64_t{kMostFusedPairs} * kernel.grid(context) && allows_vectors(0, {rope.qkv.data});
}

void generation_attention(const RopeKvWriteArgs& rope, const AttentionArgs& args, const BatchView& batch,
                          CudaContext& context) {
  if (batch.num_generation > 0) run_generation(args, &rope, batch, context);
}

}  // namespace inflight::cuda
