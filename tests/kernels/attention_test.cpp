#include "tests/kernels/paged_batch.h"

namespace inflight::test {
namespace {

struct Case {
  int heads, kv_heads, head_size, block_size = 16;
  int window = 0;
  float soft_cap = 0;
  bool alibi = false;
  DType cache = DType::kFloat32;
  float score_scale = 1;
  int sinks = 0;
};

// Keys, values and queries of whole sequences: [length, heads, D] each.
struct Sequence {
  Sequence(const Case& c, int length, Random& random)
      : length(length),
        queries(Tensor::random(DType::kFloat32, {length, c.heads, c.head_size}, random)),
        keys(Tensor::random(c.cache, {length, c.kv_heads, c.head_size}, random)),
        values(Tensor::random(c.cache, {length, c.kv_heads, c.head_size}, random)) {}

  int length;
  Tensor queries, keys, values;
};

Tensor slopes(const Case& c) {
  Tensor out(DType::kFloat32, {c.heads});
  for (int h = 0; h < c.heads; ++h) out.set(h, std::pow(2.0, -8.0 * (h + 1) / c.heads));
  return out;
}

float scale_of(const Case& c) { return c.score_scale / std::sqrt(static_cast<float>(c.head_size)); }

Values reference(const Case& c, const Sequence& s, int position, int head) {
  const int d = c.head_size, kv_head = head / (c.heads / c.kv_heads);
  const int first = c.window ? std::max(0, position - c.window + 1) : 0;
  Values weights, out(d);
  std::vector<int> seen;
  for (int j = 0; j <= position; ++j)
    if (j >= first || j < c.sinks) seen.push_back(j);
  for (const int j : seen) {
    double score = 0;
    for (int i = 0; i < d; ++i)
      score += s.queries[(position * c.heads + head) * d + i] * s.keys[(j * c.kv_heads + kv_head) * d + i];
    score *= scale_of(c);
    if (c.soft_cap > 0) score = c.soft_cap * std::tanh(score / c.soft_cap);
    if (c.alibi) score += slopes(c)[head] * (j - position);
    weights.push_back(score);
  }
  const double top = *std::max_element(weights.begin(), weights.end());
  double sum = 0;
  for (double& weight : weights) sum += weight = std::exp(weight - top);
  for (size_t k = 0; k < seen.size(); ++k)
    for (int i = 0; i < d; ++i) out[i] += weights[k] / sum * s.values[(seen[k] * c.kv_heads + kv_head) * d + i];
  return out;
}

void write_cache(const Case& c, const Sequence& s, int index, int end, PagedBatch& batch) {
  for (int j = 0; j < end; ++j)
    for (int h = 0; h < c.kv_heads; ++h)
      for (int i = 0; i < c.head_size; ++i) {
        batch.keys().set(batch.at(index, j, h, i), s.keys[(j * c.kv_heads + h) * c.head_size + i]);
        batch.values().set(batch.at(index, j, h, i), s.values[(j * c.kv_heads + h) * c.head_size + i]);
      }
}

// Output of one step that takes `chunks` of the sequences; the cache holds nothing beyond them.
Tensor run(const Case& c, const std::vector<Sequence>& sequences, const std::vector<Chunk>& chunks, int threads,
           Random& random) {
  PagedBatch batch(chunks, {c.kv_heads, c.block_size, c.head_size, c.cache}, random);
  const int width = c.heads * c.head_size, tokens = batch.num_tokens();
  for (size_t s = 0; s < chunks.size(); ++s)
    write_cache(c, sequences[s], static_cast<int>(s), chunks[s].past + chunks[s].count, batch);
  Tensor q(DType::kFloat32, {tokens, width}), out(DType::kFloat32, {tokens, width});
  for (int t = 0; t < tokens; ++t)
    std::memcpy(q.view().as<float>() + t * width,
                sequences[batch.sequence(t)].queries.view().as<float>() + batch.position(t) * width, width * 4);
  const Tensor table = slopes(c);
  AttentionArgs args{q, batch.cache(), {}, scale_of(c), c.window, c.soft_cap, out, c.sinks};
  if (c.alibi) args.alibi_slopes = table;
  ops().attention(args, batch.view(), context(threads));
  EXPECT_TRUE(out.guard_intact());
  return out;
}

void check_case(const Case& c, Random& random) {
  std::vector<Sequence> sequences;
  for (const int length : {1, 9, 70, 133}) sequences.emplace_back(c, length, random);
  const std::vector<Chunk> chunks = {{0, 1}, {0, 9}, {69, 1}, {100, 33}};
  const Tensor out = run(c, sequences, chunks, 2, random);
  Values want;
  for (size_t s = 0; s < chunks.size(); ++s)
    for (int p = chunks[s].past; p < sequences[s].length; ++p)
      for (int h = 0; h < c.heads; ++h) {
        const Values row = reference(c, sequences[s], p, h);
        want.insert(want.end(), row.begin(), row.end());
      }
  expect_close(out, want, 1e-6, concat("heads ", c.heads, "/", c.kv_heads, " of ", c.head_size));
}

TEST(Attention, MatchesReference) {
  Random random;
  for (const int head_size : {40, 64, 80, 128, 7})
    for (const int group : {1, 2, 4, 7}) check_case({2 * group, 2, head_size}, random);
}

Case sinks(Case c, int count) {
  c.sinks = count;
  return c;
}

TEST(Attention, VariantsMatchReference) {
  Random random;
  for (const Case& c :
       {Case{4, 2, 64, 16, 1}, Case{4, 2, 64, 16, 8}, Case{4, 2, 64, 8, 50}, Case{4, 2, 64, 64, 1000},
        sinks({4, 2, 64, 16, 1}, 1), sinks({4, 2, 64, 16, 8}, 4), sinks({4, 2, 40, 8, 20}, 17),
        sinks({4, 4, 64, 16, 9}, 60), sinks({4, 2, 64, 16, 30}, 200), sinks({6, 2, 40, 32, 20, 3.0f, true}, 5),
        Case{4, 2, 64, 16, 0, 5.0f}, Case{4, 2, 64, 16, 0, 0, true}, Case{6, 2, 40, 32, 20, 3.0f, true}})
    check_case(c, random);
}

TEST(Attention, ReadsNarrowCaches) {
  Random random;
  for (const DType dtype : {DType::kFloat16, DType::kBfloat16}) check_case({4, 2, 72, 16, 0, 0, false, dtype}, random);
}

TEST(Attention, LargeScoresDoNotOverflow) {
  Random random;
  Case c{4, 2, 64};
  c.score_scale = 50;
  std::vector<Sequence> sequences = {Sequence(c, 90, random)};
  const Tensor out = run(c, sequences, {{0, 90}}, 2, random);
  Values want;
  for (int p = 0; p < 90; ++p)
    for (int h = 0; h < c.heads; ++h) {
      const Values row = reference(c, sequences[0], p, h);
      want.insert(want.end(), row.begin(), row.end());
    }
  expect_close(out, want, 1e-4);
}

// Each token's bits: alone or in a chunk of any size, with other sequences, other blocks, block sizes and threads.
TEST(Attention, TokensDoNotDependOnTheChunking) {
  Random random;
  const Case cases[] = {{4, 2, 64},
                        {7, 1, 40},
                        {3, 3, 80},
                        {4, 2, 64, 16, 21},
                        {4, 2, 64, 16, 0, 4.0f, true},
                        sinks({4, 2, 64, 16, 11}, 5),
                        sinks({2, 2, 40, 16, 9, 4.0f, true}, 30)};
  for (Case c : cases) {
    const int length = 75;
    std::vector<Sequence> sequences;
    for (const int l : {length, 50}) sequences.emplace_back(c, l, random);
    const Tensor whole = run(c, sequences, {{0, length}}, 1, random);
    for (const int chunk : {1, 7, 32}) {
      c.block_size = random.integer(1, 40);
      for (int past = 0; past < length; past += chunk) {
        const int count = std::min(chunk, length - past);
        const Tensor part = run(c, sequences, {{past, count}, {20, 30}}, random.integer(1, 3), random);
        ASSERT_EQ(part.bits(0, count), whole.bits(past, past + count))
            << "tokens " << past << " to " << past + count << " with block size " << c.block_size;
      }
    }
  }
}

TEST(Attention, NamesWhatDoesNotFit) {
  Random random;
  PagedBatch batch({{0, 2}}, {2, 4, 8}, random);
  Tensor q(DType::kFloat32, {2, 24}), out(DType::kFloat32, {2, 24});
  EXPECT_EQ(error_of(ErrorCode::kInvalidArgument,
                     [&] { ops().attention({q, batch.cache(), {}, 1, 0, 0, out}, batch.view(), context()); }),
            "attention: q [2, 24] float32 is no multiple of 2 KV heads of size 8");
  KvCacheView cache = batch.cache();
  cache.values.dtype = DType::kFloat16;
  EXPECT_EQ(error_of(ErrorCode::kUnsupported,
                     [&] { ops().attention({q, cache, {}, 1, 0, 0, out}, batch.view(), context()); }),
            "attention: cache values is [2, 2, 4, 8] float16, wanted [N=2, Hkv=2, P=4, D=8] float32");
}

}  // namespace
}  // namespace inflight::test
