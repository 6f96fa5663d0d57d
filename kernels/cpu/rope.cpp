// Token by token: cosines and sines once for all heads, each head rotated in vectors, keys and values converted into
// their place in the paged cache. Interleaved pairs are taken apart first, so that one routine rotates both layouts.

#include <cmath>
#include <vector>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/paged.h"
#include "kernels/cpu/signature.h"
#include "kernels/cpu/vec.h"
#include "kernels/cpu/work.h"

namespace inflight::cpu {
namespace {

// One thread's tables and workspace.
struct Rotation {
  Rotation(const RopeKvWriteArgs& args, int64_t head_size)
      : frequencies(args.inverse_frequencies.as<float>()),
        pairs(args.inverse_frequencies ? args.inverse_frequencies.shape[0] : 0),
        scale(args.rope_scale),
        interleaved(args.interleaved),
        cosines(pairs),
        sines(pairs),
        split(2 * pairs),
        head(head_size) {}

  void set_position(int32_t position) {
    for (int64_t i = 0; i < pairs; ++i) {
      const float angle = static_cast<float>(position) * frequencies[i];
      cosines[i] = std::cos(angle) * scale;
      sines[i] = std::sin(angle) * scale;
    }
  }

  const float* frequencies;  // [R / 2]
  int64_t pairs;             // R / 2
  float scale;
  bool interleaved;
  std::vector<float> cosines, sines;  // [R / 2] at the position set
  std::vector<float> split;           // [R] interleaved pairs taken apart
  std::vector<float> head;            // [D] a rotated key before its conversion
};

// (a, b) -> (a cos - b sin, b cos + a sin); out may be the input.
void rotate_halves(const Rotation& r, const float* in, float* out) {
  for_each_vec(r.pairs, [&](int64_t i, auto count) {
    const Vec a = load_n(in + i, count), b = load_n(in + r.pairs + i, count);
    const Vec cosine = load_n(r.cosines.data() + i, count), sine = load_n(r.sines.data() + i, count);
    const Vec b_sine = b * sine, a_sine = a * sine;
    store_n(out + i, multiply_add(a, cosine, -b_sine), count);
    store_n(out + r.pairs + i, multiply_add(b, cosine, a_sine), count);
  });
}

void rotate(Rotation& r, const float* in, float* out, int64_t head_size) {
  std::memcpy(out + 2 * r.pairs, in + 2 * r.pairs, (head_size - 2 * r.pairs) * sizeof(float));
  if (!r.interleaved) return rotate_halves(r, in, out);
  for (int64_t i = 0; i < r.pairs; ++i) {
    r.split[i] = in[2 * i];
    r.split[r.pairs + i] = in[2 * i + 1];
  }
  rotate_halves(r, r.split.data(), r.split.data());
  for (int64_t i = 0; i < r.pairs; ++i) {
    out[2 * i] = r.split[i];
    out[2 * i + 1] = r.split[r.pairs + i];
  }
}

template <typename C>
void convert(const float* from, C* to, int64_t size) {
  for (int64_t i = 0; i < size; ++i) from_float(from[i], to[i]);
}

template <typename C>
void write_token(const RopeKvWriteArgs& args, const BatchView& batch, int64_t token, Rotation& rotation) {
  const KvCacheView& cache = args.cache;
  const int64_t d = cache.head_size(), kv_heads = cache.num_kv_heads(), heads = args.q.shape[1] / d;
  const int32_t position = batch.positions.as<int32_t>()[token];
  const int64_t table_size = batch.block_tables.shape[1];
  const int32_t* table = batch.block_tables.as<int32_t>() + batch.token_sequences.as<int32_t>()[token] * table_size;
  rotation.set_position(position);
  const float* query = args.qkv.as<float>() + token * (heads + 2 * kv_heads) * d;  // [Hq, D]
  const float* key = query + heads * d;                                            // [Hkv, D]
  const float* value = key + kv_heads * d;                                         // [Hkv, D]
  float* out = args.q.as<float>() + token * heads * d;                             // [Hq, D]
  for (int64_t h = 0; h < heads; ++h) rotate(rotation, query + h * d, out + h * d, d);
  for (int64_t h = 0; h < kv_heads; ++h) {
    rotate(rotation, key + h * d, rotation.head.data(), d);
    convert(rotation.head.data(), PagedHead<C>{cache, cache.keys.as<C>(), table, table_size, h}.at(position), d);
    convert(value + h * d, PagedHead<C>{cache, cache.values.as<C>(), table, table_size, h}.at(position), d);
  }
}

void check_views(const RopeKvWriteArgs& args, const BatchView& batch) {
  Dim n("N"), kv_heads("Hkv"), p("P"), d("D"), t("T"), q_size("Hq D"), s("S"), b("B"), pairs("R/2");
  Signature signature("rope_kv_write");
  signature.cache(args.cache, {n, kv_heads, p, d})
      .view("q", args.q, {t, q_size}, kFloat)
      .view("positions", batch.positions, {t}, kInt)
      .view("token_sequences", batch.token_sequences, {t}, kInt)
      .view("block_tables", batch.block_tables, {s, b}, kInt)
      .optional("inverse_frequencies", args.inverse_frequencies, {pairs}, kFloat);
  check(d > 0 && q_size % d == 0, ErrorCode::kInvalidArgument, "rope_kv_write: q ", describe(args.q),
        " is no whole number of heads of size ", d.value);
  check(2 * pairs <= d, ErrorCode::kInvalidArgument, "rope_kv_write: ", pairs.value,
        " frequencies rotate more than the head size ", d.value);
  Dim qkv_size("(Hq + 2 Hkv) D", q_size + 2 * kv_heads * d);
  signature.view("qkv", args.qkv, {t, qkv_size}, kFloat);
}

constexpr int64_t kSineCost = 16;  // elements copied in the time of one sine

}  // namespace

void rope_kv_write(const RopeKvWriteArgs& args, const BatchView& batch, DeviceContext& context) {
  check_views(args, batch);
  const int64_t d = args.cache.head_size();
  const int64_t pairs = args.inverse_frequencies ? args.inverse_frequencies.shape[0] : 0;
  with_real_type(args.cache.keys.dtype, [&]<typename C>(C) {
    parallel_items(context, args.qkv.shape[0], args.qkv.shape[1] + 2 * pairs * kSineCost,
                   [&](int64_t begin, int64_t end) {
                     Rotation rotation(args, d);
                     for (int64_t t = begin; t < end; ++t) write_token<C>(args, batch, t, rotation);
                   });
  });
}

}  // namespace inflight::cpu
