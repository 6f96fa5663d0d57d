// One task is a few consecutive queries of one sequence under one KV head, with all query heads that share it, so that
// a key read from the cache serves many dot products. Scores of the whole visible context first, then softmax, then the
// weighted sum of values. Every sum of a query runs over its own visible keys from first to last in a fixed order, so
// its bits depend on neither the other queries of the task nor the block size.

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/paged.h"
#include "kernels/cpu/signature.h"
#include "kernels/cpu/vec.h"
#include "kernels/cpu/work.h"

namespace inflight::cpu {
namespace {

// Queries [first, first + count) of the packed batch, all of one sequence.
struct Tile {
  int32_t sequence;
  int32_t first;
  int32_t count;
};

// One query under one query head.
struct Row {
  const float* query;  // [D]
  float* out;          // [D]
  float* scores;       // of keys from the task's first; later weights, from the row's own first
  int64_t begin, end;  // visible key positions
  int64_t sinks;       // and [0, sinks), before begin
  float slope;
  float inverse_sum;
};

// Scratch of one thread, kept between calls.
struct Workspace {
  std::vector<Row> rows;
  std::vector<float> scores;
};

constexpr int kKeyTile = 4;
constexpr int kQueryTile = 3;

// scores[0 .. X) of K consecutive keys, unscaled.
template <int K, int X, typename C>
INFLIGHT_INLINE void score_tile(const Row* rows, const C* keys, int64_t d, int64_t column) {
  Vec sums[K][X] = {};
  for_each_vec(d, [&](int64_t i, auto count) {
    Vec queries[X];
#pragma GCC unroll 8
    for (int x = 0; x < X; ++x) queries[x] = load_n(rows[x].query + i, count);
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) {
      const Vec key = load_n(keys + k * d + i, count);
#pragma GCC unroll 8
      for (int x = 0; x < X; ++x) sums[k][x] = multiply_add(key, queries[x], sums[k][x]);
    }
  });
#pragma GCC unroll 8
  for (int x = 0; x < X; ++x)
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) rows[x].scores[column + k] = sum_lanes(sums[k][x]);
}

// The processor's own prefetching stops at the end of a run: the next run's vectors are asked for one run ahead.
template <typename C>
INFLIGHT_INLINE void prefetch(const C* vectors, int64_t elements) {
  for (int64_t byte = 0; byte < elements * static_cast<int64_t>(sizeof(C)); byte += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(vectors) + byte);
}

template <int X, typename C>
void score_rows(const Row* rows, const C* keys, const C* next, int64_t d, int64_t column, int64_t count) {
  int64_t k = 0;
  for (; k + kKeyTile <= count; k += kKeyTile) {
    if (next) prefetch(next + k * d, kKeyTile * d);
    score_tile<kKeyTile, X>(rows, keys + k * d, d, column + k);
  }
  for (; k < count; ++k) score_tile<1, X>(rows, keys + k * d, d, column + k);
}

// Keys that a row does not see are scored too where they share a tile; softmax() and add_values() never read those.
template <typename C>
void score_run(const std::vector<Row>& rows, const C* keys, const C* next, int64_t d, int64_t column, int64_t count) {
  size_t r = 0;
  for (; r + kQueryTile <= rows.size(); r += kQueryTile)
    score_rows<kQueryTile>(&rows[r], keys, r == 0 ? next : nullptr, d, column, count);
  if (rows.size() - r == 2) score_rows<2>(&rows[r], keys, r == 0 ? next : nullptr, d, column, count);
  if (rows.size() - r == 1) score_rows<1>(&rows[r], keys, r == 0 ? next : nullptr, d, column, count);
}

INFLIGHT_INLINE Vec tanh(Vec x) { return 1.0f - 2.0f / (exp(x + x) + 1.0f); }

INFLIGHT_INLINE Vec lane_indices() {
  Vec out;
  for (int i = 0; i < kLanes; ++i) out[i] = static_cast<float>(i);
  return out;
}

// Scales, caps and biases the row's scores, `begin` columns from its first key's window on, and turns them into
// exp(score - max), leaving 1 / sum in the row. The sinks' scores, which stand in front, move up to the window's.
void softmax(const AttentionArgs& args, Row& row, int64_t begin) {
  float* scores = row.scores + begin - row.sinks;
  if (row.sinks > 0) std::memmove(scores, row.scores, row.sinks * sizeof(float));
  row.scores = scores;
  const auto hidden = static_cast<float>(row.begin - row.sinks);
  const int64_t count = row.sinks + row.end - row.begin;
  const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
  std::fill(scores + count, scores + padded, 0.0f);
  Vec highest = broadcast(-std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < padded; i += kLanes) {
    Vec score = load(scores + i) * args.scale;
    if (args.soft_cap > 0) score = args.soft_cap * tanh(score / args.soft_cap);
    // Key position minus query position; the query is the last visible key.
    const Vec distance = lane_indices() + static_cast<float>(i - (count - 1));
    if (row.slope != 0) {
      const Vec behind_sinks = lane_indices() + static_cast<float>(i - row.sinks);
      score = multiply_add(broadcast(row.slope), behind_sinks < 0.0f ? distance - hidden : distance, score);
    }
    score = distance > 0.0f ? broadcast(-std::numeric_limits<float>::infinity()) : score;
    store(scores + i, score);
    highest = max(highest, score);
  }
  const float top = max_lanes(highest);
  Vec sum = {};
  for (int64_t i = 0; i < padded; i += kLanes) {
    const Vec weight = exp(load(scores + i) - top);
    store(scores + i, weight);
    sum += weight;
  }
  row.inverse_sum = 1.0f / sum_lanes(sum);
}

// out += weight · value over `count` keys, U vectors of the head at a time.
template <int U, typename C, typename Count>
INFLIGHT_INLINE void add_values_slice(float* out, const float* weights, const C* values, const C* next, int64_t d,
                                      int64_t count, Count width) {
  Vec sums[U];
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u) sums[u] = load_n(out + u * kLanes, width);
  for (int64_t k = 0; k < count; ++k) {
    const Vec weight = broadcast(weights[k]);
    if (next) prefetch(next + k * d, U * kLanes);
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) sums[u] = multiply_add(weight, load_n(values + k * d + u * kLanes, width), sums[u]);
  }
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u) store_n(out + u * kLanes, sums[u], width);
}

template <typename C>
void add_values(float* out, const float* weights, const C* values, const C* next, int64_t d, int64_t count) {
  constexpr int kWide = 8;
  constexpr std::integral_constant<int, kLanes> kFull;
  int64_t i = 0;
  for (; i + kWide * kLanes <= d; i += kWide * kLanes)
    add_values_slice<kWide>(out + i, weights, values + i, next ? next + i : nullptr, d, count, kFull);
  for (; i + kLanes <= d; i += kLanes)
    add_values_slice<1>(out + i, weights, values + i, next ? next + i : nullptr, d, count, kFull);
  if (i < d) add_values_slice<1>(out + i, weights, values + i, next ? next + i : nullptr, d, count, d - i);
}

// Calls body(vectors, next, position, count) for each run of [begin, end) that is contiguous in the cache; `next` is
// the following run or null.
template <typename C, typename Body>
void for_each_run(const PagedHead<C>& head, int64_t begin, int64_t end, const Body& body) {
  const int64_t size = head.cache.block_size();
  for (int64_t at = begin; at < end;) {
    const int64_t count = std::min(end, (at / size + 1) * size) - at;
    body(head.at(at), at + count < end ? head.at(at + count) : nullptr, at, count);
    at += count;
  }
}

struct Call {
  const AttentionArgs& args;
  const BatchView& batch;
  int64_t heads, kv_heads, d;

  int64_t group() const { return heads / kv_heads; }
};

void fill_rows(const Call& call, const Tile& tile, int64_t kv_head, std::vector<Row>& rows) {
  const AttentionArgs& args = call.args;
  rows.clear();
  for (int64_t t = tile.first; t < tile.first + tile.count; ++t) {
    const int64_t end = call.batch.positions.as<int32_t>()[t] + 1;
    const int64_t begin = args.window > 0 ? std::max<int64_t>(0, end - args.window) : 0;
    const int64_t sinks = std::min<int64_t>(args.sinks, begin);
    for (int64_t h = kv_head * call.group(); h < (kv_head + 1) * call.group(); ++h) {
      const int64_t at = (t * call.heads + h) * call.d;
      const float slope = args.alibi_slopes ? args.alibi_slopes.as<float>()[h] : 0.0f;
      rows.push_back({args.q.as<float>() + at, args.out.as<float>() + at, nullptr, begin, end, sinks, slope, 0.0f});
    }
  }
}

template <typename C>
void attend(const Call& call, const Tile& tile, int64_t kv_head, Workspace& work) {
  const KvCacheView& cache = call.args.cache;
  const int64_t table_size = call.batch.block_tables.shape[1];
  const int32_t* table = call.batch.block_tables.as<int32_t>() + tile.sequence * table_size;
  fill_rows(call, tile, kv_head, work.rows);
  const int64_t begin = work.rows.front().begin, end = work.rows.back().end;
  // Columns of the scores: keys [0, sinks), then [begin, end). Later rows may have sinks among the latter: then nothing
  // lies between. So a row's sinks are the first columns in any case.
  const int64_t sinks = work.rows.front().sinks;
  const int64_t stride = sinks + end - begin + kLanes;  // softmax() pads a row to whole vectors
  if (work.scores.size() < work.rows.size() * stride) work.scores.resize(work.rows.size() * stride);
  for (size_t r = 0; r < work.rows.size(); ++r) work.rows[r].scores = work.scores.data() + r * stride;

  const PagedHead<const C> keys{cache, cache.keys.as<const C>(), table, table_size, kv_head};
  for_each_run(keys, 0, sinks, [&](const C* run, const C* next, int64_t position, int64_t count) {
    score_run(work.rows, run, next, call.d, position, count);
  });
  for_each_run(keys, begin, end, [&](const C* run, const C* next, int64_t position, int64_t count) {
    score_run(work.rows, run, next, call.d, sinks + position - begin, count);
  });
  for (Row& row : work.rows) {
    softmax(call.args, row, sinks + row.begin - begin);
    std::fill(row.out, row.out + call.d, 0.0f);
  }
  const PagedHead<const C> values{cache, cache.values.as<const C>(), table, table_size, kv_head};
  for_each_run(values, 0, work.rows.back().sinks, [&](const C* run, const C*, int64_t position, int64_t count) {
    for (const Row& row : work.rows) {
      const int64_t seen = std::min(position + count, row.sinks) - position;
      if (seen > 0) add_values<C>(row.out, row.scores + position, run, nullptr, call.d, seen);
    }
  });
  for_each_run(values, begin, end, [&](const C* run, const C* next, int64_t position, int64_t count) {
    for (const Row& row : work.rows) {
      const int64_t from = std::max(position, row.begin), to = std::min(position + count, row.end);
      if (from >= to) continue;
      add_values(row.out, row.scores + row.sinks + (from - row.begin), run + (from - position) * call.d, next, call.d,
                 to - from);
      next = nullptr;
    }
  });
  for (const Row& row : work.rows)
    for_each_vec(call.d, [&](int64_t i, auto count) {
      store_n(row.out + i, load_n(row.out + i, count) * row.inverse_sum, count);
    });
}

constexpr int64_t kRowsPerTile = 12;

void make_tiles(const Call& call, std::vector<Tile>& tiles) {
  const int32_t* offsets = call.batch.query_offsets.as<int32_t>();
  const auto step = static_cast<int32_t>(std::max<int64_t>(1, kRowsPerTile / call.group()));
  tiles.clear();
  for (int32_t s = 0; s < call.batch.num_sequences(); ++s)
    for (int32_t t = offsets[s]; t < offsets[s + 1]; t += step)
      tiles.push_back({s, t, std::min(step, offsets[s + 1] - t)});
}

Call check_views(const AttentionArgs& args, const BatchView& batch) {
  Dim n("N"), kv_heads("Hkv"), p("P"), d("D"), t("T"), q_size("Hq D"), s("S"), s_plus_1("S + 1"), b("B");
  Signature signature("attention");
  signature.cache(args.cache, {n, kv_heads, p, d})
      .view("q", args.q, {t, q_size}, kFloat)
      .view("out", args.out, {t, q_size}, kFloat)
      .view("positions", batch.positions, {t}, kInt)
      .view("context_lengths", batch.context_lengths, {s}, kInt)
      .view("block_tables", batch.block_tables, {s, b}, kInt);
  s_plus_1.value = s + 1;
  signature.view("query_offsets", batch.query_offsets, {s_plus_1}, kInt);
  check(d > 0 && q_size % d == 0 && kv_heads > 0 && q_size / d % kv_heads == 0, ErrorCode::kInvalidArgument,
        "attention: q ", describe(args.q), " is no multiple of ", kv_heads.value, " KV heads of size ", d.value);
  Dim heads("Hq", q_size / d);
  signature.optional("alibi_slopes", args.alibi_slopes, {heads}, kFloat);
  return {args, batch, heads, kv_heads, d};
}

}  // namespace

void attention(const AttentionArgs& args, const BatchView& batch, DeviceContext& context) {
  const Call call = check_views(args, batch);
  thread_local std::vector<Tile> tiles;
  make_tiles(call, tiles);
  const int64_t tasks = static_cast<int64_t>(tiles.size()) * call.kv_heads;
  if (tasks == 0) return;
  const int64_t rows = args.q.shape[0] * call.heads;
  const int64_t cost = rows * batch.max_context_length * call.d * 2 / kLanes / tasks;
  const std::vector<Tile>& shared_tiles = tiles;  // a lambda would see each worker's own thread_local
  with_real_type(args.cache.keys.dtype, [&]<typename C>(C) {
    parallel_items(context, tasks, cost, [&](int64_t begin, int64_t end) {
      thread_local Workspace work;
      for (int64_t i = begin; i < end; ++i) attend<C>(call, shared_tiles[i / call.kv_heads], i % call.kv_heads, work);
    });
  });
}

}  // namespace inflight::cpu
