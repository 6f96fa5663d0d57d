// Context attention: prompts of equal length, whole or the last chunk of a long one. Operations count only the keys
// that a query sees.

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "kernels/bench/cuda_bench.h"
#include "kernels/bench/cuda_data.h"
#include "kernels/cuda/attention_parts.h"

namespace inflight::bench {
namespace {

struct Shape {
  int sequences, past, count;
  int heads, kv_heads, head_size;
  int page = 64;
  int window = 0;
  float soft_cap = 0;
};

constexpr Shape kShapes[] = {
    {1, 0, 16384, 32, 8, 128},
    {2, 0, 8192, 32, 8, 128},
    {4, 0, 4096, 32, 8, 128},
    {4, 0, 2048, 32, 8, 128},
    {8, 0, 1024, 32, 8, 128},
    {16, 0, 512, 32, 8, 128},
    {64, 0, 128, 32, 8, 128},
    {1, 14336, 2048, 32, 8, 128},
    {4, 7680, 512, 32, 8, 128},
    {1, 0, 16384, 32, 32, 128},
    {8, 0, 1024, 32, 32, 128},
    {1, 0, 16384, 32, 8, 128, 16},
    {8, 0, 1024, 32, 8, 128, 16},
    {1, 0, 16384, 32, 8, 128, 64, 4096},
    {1, 0, 16384, 32, 8, 64},
    {8, 0, 1024, 32, 8, 64},
    {1, 0, 16384, 32, 32, 80},
    {1, 0, 16384, 32, 32, 96},
    {1, 0, 16384, 16, 8, 256},
    {8, 0, 1024, 16, 8, 256},
    {1, 0, 8192, 16, 8, 256, 64, 0, 50.0f},
};

std::string text_of(const Shape& s) {
  std::string text = concat(s.sequences, " x ", s.count, " tokens after ", s.past, ", heads ", s.heads, "/", s.kv_heads,
                            ", D ", s.head_size, ", P ", s.page);
  if (s.window) text += concat(", window ", s.window);
  if (s.soft_cap > 0) text += concat(", soft cap ", s.soft_cap);
  return text;
}

double visible_keys(const Shape& s) {
  double keys = 0;
  for (int position = s.past; position < s.past + s.count; ++position)
    keys += s.window ? std::min(s.window, position + 1) : position + 1;
  return keys * s.sequences;
}

std::vector<int32_t> multiples(int count, int of) {
  std::vector<int32_t> out(count);
  for (int i = 0; i < count; ++i) out[i] = i * of;
  return out;
}

std::vector<int32_t> shuffled(int count) {
  std::vector<int32_t> out = multiples(count, 1);
  std::shuffle(out.begin(), out.end(), std::mt19937(count));
  return out;
}

void bench_shape(Bench& bench, const Shape& s) {
  const int tokens = s.sequences * s.count, length = s.past + s.count, table = (length + s.page - 1) / s.page;
  const Buffer q = random_buffer({tokens, s.heads * s.head_size}),
               out(DType::kBfloat16, {tokens, s.heads * s.head_size});
  const Buffer keys = random_buffer({s.sequences * table, s.kv_heads, s.page, s.head_size}),
               values = random_buffer({s.sequences * table, s.kv_heads, s.page, s.head_size});
  const Buffer ids = int_buffer(multiples(tokens, 1)), offsets = int_buffer(multiples(s.sequences + 1, s.count)),
               lengths = int_buffer(std::vector<int32_t>(s.sequences, length)),
               tables = int_buffer(shuffled(s.sequences * table), {s.sequences, table});
  BatchView batch;
  batch.token_ids = batch.positions = batch.token_sequences = ids;
  batch.query_offsets = offsets;
  batch.context_lengths = lengths;
  batch.block_tables = tables;
  const float scale = 1.0f / std::sqrt(static_cast<float>(s.head_size));
  const AttentionArgs args{q, {keys, values}, {}, scale, s.window, s.soft_cap, out};
  cuda::plan_context_attention(batch, bench.context());
  const double cache_bytes = 2.0 * 2 * s.sequences * length * s.kv_heads * s.head_size;
  bench.measure(
      {"context_attention", text_of(s), 2.0 * q.view.bytes() + cache_bytes,
       4.0 * s.head_size * s.heads * visible_keys(s)},
      [&](int) { cuda::context_attention(args, batch, bench.context()); }, 1);
}

void bench_context_attention(Bench& bench) {
  for (const Shape& shape : kShapes) bench_shape(bench, shape);
}

const Registered kCases("context_attention", bench_context_attention);

}  // namespace
}  // namespace inflight::bench
