#include "inflight/ops/attention.h"

#include <algorithm>

#include "kernels/cuda/arguments.h"
#include "kernels/cuda/attention_parts.h"
#include "kernels/cuda/ops.h"

namespace inflight::cuda {
namespace {

void check_cache(const KvCacheView& cache, Dim& kv_heads, Dim& d) {
  Dim n("N"), p("P");
  Signature("attention")
      .view("cache keys", cache.keys, {n, kv_heads, p, d}, kBf16)
      .view("cache values", cache.values, {n, kv_heads, p, d}, kBf16);
}

}  // namespace

void check_attention(const AttentionArgs& args, const BatchView& batch) {
  Dim kv_heads("Hkv"), d("D"), t("T"), q_size("Hq D"), s("S"), s_plus_1("S + 1"), b("B");
  check_cache(args.cache, kv_heads, d);
  Signature signature("attention");
  signature.view("q", args.q, {t, q_size}, kBf16)
      .view("out", args.out, {t, q_size}, kBf16)
      .view("positions", batch.positions, {t}, kInt)
      .view("context_lengths", batch.context_lengths, {s}, kInt)
      .view("block_tables", batch.block_tables, {s, b}, kInt);
  s_plus_1.value = s + 1;
  signature.view("query_offsets", batch.query_offsets, {s_plus_1}, kInt);
  check(d > 0 && q_size % d == 0 && kv_heads > 0 && q_size / d % kv_heads == 0, ErrorCode::kInvalidArgument,
        "attention: q ", describe(args.q), " is no multiple of ", kv_heads.value, " KV heads of size ", d.value);
  Dim heads("Hq", q_size / d);
  signature.optional("alibi_slopes", args.alibi_slopes, {heads}, kFloat32);
  check(args.window >= 0 && args.sinks >= 0, ErrorCode::kInvalidArgument, "attention: a window of ", args.window,
        " with ", args.sinks, " sinks, wanted numbers >= 0");
  check(batch.num_generation >= 0 && batch.num_generation <= std::min<int64_t>(s, t), ErrorCode::kInvalidArgument,
        "attention: num_generation is ", batch.num_generation, " in a batch of ", s.value, " sequences and ", t.value,
        " tokens");
}

void prepare_step(const BatchView& batch, DeviceContext& device) {
  CudaContext& context = cuda_context(device);
  plan_generation_attention(batch, context);
  plan_context_attention(batch, context);
}

void attention(const AttentionArgs& args, const BatchView& batch, DeviceContext& device) {
  CudaContext& context = cuda_context(device);
  check_attention(args, batch);
  if (batch.num_generation > 0) generation_attention(args, batch, context);
  if (args.q.shape[0] > batch.num_generation) context_attention(args, batch, context);
}

}  // namespace inflight::cuda
