#include <bit>

#include "kernels/cuda/arguments.h"
#include "kernels/cuda/attention_parts.h"
#include "kernels/cuda/context_attention.cuh"
#include "kernels/cuda/tensor_map.h"

namespace inflight::cuda {
namespace {

constexpr int kMinPage = 8;  // rows of the swizzle's pattern
constexpr int kColumns = 64;
constexpr float kLog2e = 1.4426950408889634f;

bool is_biased(const AttentionArgs& args) { return args.soft_cap > 0 || args.alibi_slopes; }

// The sizes of a call, checked.
struct Call {
  int64_t tokens, heads, kv_heads, head_size, page, sequences;
  const ContextKernel& kernel;

  int group() const { return static_cast<int>(heads / kv_heads); }
  int tile_tokens() const { return kernel.rows_per_tile / group(); }
};

const ContextKernel& kernel_for(int64_t head_size, bool biased) {
  static const ContextKernels* const kAll[] = {&context_kernels_64(), &context_kernels_80(), &context_kernels_96(),
                                               &context_kernels_128(), &context_kernels_256()};
  for (const ContextKernels* kernels : kAll)
    if (kernels->head_size == head_size) return biased ? kernels->biased : kernels->plain;
  throw Error(ErrorCode::kUnsupported,
              concat("attention: heads of size ", head_size, "; the context kernels are for 64, 80, 96, 128 and 256"));
}

Call check_call(const AttentionArgs& args, const BatchView& batch) {
  Dim n("N"), kv_heads("Hkv"), p("P"), d("D"), t("T"), q_size("Hq D"), s("S"), s_plus_1("S + 1"), b("B");
  Signature signature("attention");
  signature.view("cache keys", args.cache.keys, {n, kv_heads, p, d}, kBf16)
      .view("cache values", args.cache.values, {n, kv_heads, p, d}, kBf16)
      .view("q", args.q, {t, q_size}, kBf16)
      .view("out", args.out, {t, q_size}, kBf16)
      .view("context_lengths", batch.context_lengths, {s}, kInt)
      .view("block_tables", batch.block_tables, {s, b}, kInt);
  s_plus_1.value = s + 1;
  signature.view("query_offsets", batch.query_offsets, {s_plus_1}, kInt);
  check(d > 0 && q_size % d == 0 && kv_heads > 0 && q_size / d % kv_heads == 0, ErrorCode::kInvalidArgument,
        "attention: q ", describe(args.q), " is no multiple of ", kv_heads.value, " KV heads of size ", d.value);
  Dim heads("Hq", q_size / d);
  signature.optional("alibi_slopes", args.alibi_slopes, {heads}, kFloat32);
  const Call call{t, heads, kv_heads, d, p, s, kernel_for(d, is_biased(args))};
  check(call.group() <= call.kernel.rows_per_tile, ErrorCode::kUnsupported, "attention: ", call.group(),
        " query heads share a KV head, at most ", call.kernel.rows_per_tile, " can");
  check(p >= kMinPage && std::has_single_bit(static_cast<uint64_t>(p)), ErrorCode::kUnsupported,
        "attention: KV blocks of ", p.value, " tokens; a power of two from ", kMinPage, " up is wanted");
  check(n * kv_heads * p < (int64_t{1} << 31), ErrorCode::kUnsupported, "attention: a cache of ",
        describe(args.cache.keys), " has 2^31 rows or more");
  check(args.scale > 0, ErrorCode::kInvalidArgument, "attention: scale ", args.scale, " is not above 0");
  return call;
}

// A copy takes keys of one page only, and whole parts of a tile.
int box_keys(const Call& call) {
  const int keys = call.kernel.keys_per_tile;
  return static_cast<int>(std::min<int64_t>(call.page, keys & -keys));
}

ContextMaps maps_of(const AttentionArgs& args, const Call& call) {
  const int64_t rows = args.cache.keys.elements() / call.head_size;
  const int box = box_keys(call);
  return {make_tensor_map(args.q.data, {call.head_size, call.heads, call.tokens},
                          {kColumns, call.group(), call.tile_tokens()}),
          make_tensor_map(args.cache.keys.data, {call.head_size, rows}, {kColumns, box}),
          make_tensor_map(args.cache.values.data, {call.head_size, rows}, {kColumns, box})};
}

ContextAttentionParams params_of(const AttentionArgs& args, const BatchView& batch, const Call& call,
                                 const ContextPlan& plan) {
  ContextAttentionParams params{};
  params.out = args.out.data;
  params.context_lengths = batch.context_lengths.as<int>();
  params.block_tables = batch.block_tables.as<int>();
  params.alibi_slopes = args.alibi_slopes ? args.alibi_slopes.as<float>() : nullptr;
  params.tiles = plan.tiles();
  params.num_tiles = plan.num_tiles();
  params.next_item = plan.next_item();
  params.table_width = static_cast<int>(batch.block_tables.shape[1]);
  params.num_heads = static_cast<int>(call.heads);
  params.num_kv_heads = static_cast<int>(call.kv_heads);
  params.group = call.group();
  params.tile_tokens = call.tile_tokens();
  params.page_shift = std::countr_zero(static_cast<uint64_t>(call.page));
  params.box_keys = box_keys(call);
  params.cache_rows = static_cast<int>(args.cache.keys.elements() / call.head_size);
  params.window = args.window;
  params.sinks = args.window > 0 ? args.sinks : 0;
  params.soft_cap = args.soft_cap;
  params.scale = is_biased(args) ? args.scale : args.scale * kLog2e;
  return params;
}

}  // namespace

void context_attention(const AttentionArgs& args, const BatchView& batch, CudaContext& context) {
  const Call call = check_call(args, batch);
  const int64_t tokens = call.tokens - batch.num_generation, sequences = call.sequences - batch.num_generation;
  if (tokens <= 0 || sequences <= 0) return;
  ContextPlan& plan = context.state<ContextPlan>();
  plan.make(batch, call.tile_tokens(), context);
  const int64_t most_items = (tokens / call.tile_tokens() + sequences) * call.kv_heads;
  const auto num_blocks = static_cast<int>(std::min<int64_t>(context.num_sms(), most_items));
  call.kernel.launch(maps_of(args, call), params_of(args, batch, call, plan), num_blocks, context);
}

}  // namespace inflight::cuda
