#include <numeric>

#include "kernels/cuda/ops.h"
#include "tests/cuda/gpu_harness.h"
#include "tests/kernels/paged_batch.h"

namespace inflight::test {
namespace {

constexpr double kBound = 3.95e-3;  // bfloat16's rounding, at its worst for the smallest sizes: 2^-8

struct Case {
  int heads, kv_heads, head_size, pairs;
  bool interleaved = false;
  float scale = 1;
  float base = 10000;
};

/// A paged batch with a bfloat16 cache, and its copy on the GPU.
class GpuBatch {
 public:
  explicit GpuBatch(PagedBatch& batch)
      : view_(batch.view()),
        positions_(copy(view_.positions)),
        token_sequences_(copy(view_.token_sequences)),
        context_lengths_(copy(view_.context_lengths)),
        block_tables_(batch.block_tables()),
        keys_(batch.keys()),
        values_(batch.values()) {
    view_.token_ids = view_.positions = positions_;
    view_.token_sequences = token_sequences_;
    view_.query_offsets = {};
    view_.context_lengths = context_lengths_;
    view_.block_tables = block_tables_;
  }
  const BatchView& view() const { return view_; }
  KvCacheView cache() const { return {keys_, values_}; }
  Tensor keys() const { return keys_.host(); }
  Tensor values() const { return values_.host(); }

 private:
  static Tensor copy(const TensorView& source) {
    Tensor out(source.dtype, {source.shape[0]});
    std::memcpy(out.view().data, source.data, source.bytes());
    return out;
  }

  BatchView view_;
  GpuTensor positions_, token_sequences_, context_lengths_, block_tables_, keys_, values_;
};

Tensor frequencies(int pairs, float base) {
  Tensor out(DType::kFloat32, {pairs});
  for (int i = 0; i < pairs; ++i) out.set(i, std::pow(base, -static_cast<double>(i) / pairs));
  return out;
}

// The rotated head in double, but for the angle, which is a float32 product in every implementation.
Values rotated(const Case& c, const Tensor& in, int64_t at, int position, const Tensor& inverse_frequencies) {
  Values out(c.head_size);
  for (int i = 0; i < c.head_size; ++i) out[i] = in[at + i];
  for (int i = 0; i < c.pairs; ++i) {
    const double angle = static_cast<float>(position) * static_cast<float>(inverse_frequencies[i]);
    const int first = c.interleaved ? 2 * i : i, second = c.interleaved ? 2 * i + 1 : i + c.pairs;
    const double a = in[at + first], b = in[at + second];
    out[first] = c.scale * (a * std::cos(angle) - b * std::sin(angle));
    out[second] = c.scale * (b * std::cos(angle) + a * std::sin(angle));
  }
  return out;
}

void append(Values& to, const Values& values) { to.insert(to.end(), values.begin(), values.end()); }

Values read_head(const PagedBatch& batch, const Tensor& pool, int token, int head, int head_size) {
  Values out(head_size);
  for (int i = 0; i < head_size; ++i) out[i] = pool[batch.at(batch.sequence(token), batch.position(token), head, i)];
  return out;
}

/// The keys that `tokens` sequences of one token each leave, each in a block of its own.
Tensor keys_of(const Case& c, const Tensor& qkv, int tokens) {
  const int d = c.head_size;
  const auto counted = [&](int start) {
    std::vector<int32_t> list(tokens);
    std::iota(list.begin(), list.end(), start);
    return list;
  };
  const GpuTensor positions(Tensor::ints(counted(100))), owners(Tensor::ints(counted(0))),
      lengths(Tensor::ints(counted(101))), table(frequencies(c.pairs, c.base));
  std::vector<int32_t> blocks;  // [tokens, 8], of 64: all that a sequence has lies in one block
  for (int t = 0; t < tokens; ++t) blocks.insert(blocks.end(), 8, t);
  const GpuTensor tables(Tensor::ints(blocks));
  const GpuTensor keys(DType::kBfloat16, {tokens, c.kv_heads, 64, d}),
      values(DType::kBfloat16, {tokens, c.kv_heads, 64, d});
  const GpuTensor qkv_gpu(qkv), q(DType::kBfloat16, {tokens, c.heads * d});
  BatchView batch;
  batch.token_ids = batch.positions = positions;
  batch.token_sequences = owners;
  batch.context_lengths = lengths;
  batch.block_tables = TensorView(tables.view().data, DType::kInt32, {tokens, 8});
  TensorView rows = qkv_gpu;
  rows.shape[0] = tokens;
  cuda::rope_kv_write({rows, table, c.scale, c.interleaved, {keys, values}, q}, batch, gpu());
  return keys.host();
}

void check_case(const Case& c, const std::vector<Chunk>& chunks, Random& random) {
  PagedBatch batch(chunks, {c.kv_heads, 16, c.head_size, DType::kBfloat16}, random);
  GpuBatch gpu_batch(batch);
  const int d = c.head_size, tokens = batch.num_tokens(), width = (c.heads + 2 * c.kv_heads) * d;
  const Tensor qkv = Tensor::random(DType::kBfloat16, {tokens, width}, random);
  const Tensor table = frequencies(c.pairs, c.base);
  const GpuTensor qkv_gpu(qkv), table_gpu(table), q(DType::kBfloat16, {tokens, c.heads * d});
  const TensorView used = c.pairs ? table_gpu.view() : TensorView();
  cuda::rope_kv_write({qkv_gpu, used, c.scale, c.interleaved, gpu_batch.cache(), q}, gpu_batch.view(), gpu());
  const Tensor key_pool = gpu_batch.keys(), value_pool = gpu_batch.values();
  Values want_q, want_keys, want_values, keys, values;
  for (int t = 0; t < tokens; ++t) {
    const int64_t at = static_cast<int64_t>(t) * width;
    const int position = batch.position(t);
    for (int h = 0; h < c.heads; ++h) append(want_q, rotated(c, qkv, at + h * d, position, table));
    for (int h = 0; h < c.kv_heads; ++h) {
      append(want_keys, rotated(c, qkv, at + (c.heads + h) * d, position, table));
      for (int i = 0; i < d; ++i) want_values.push_back(qkv[at + (c.heads + c.kv_heads + h) * d + i]);
      append(keys, read_head(batch, key_pool, t, h, d));
      append(values, read_head(batch, value_pool, t, h, d));
    }
  }
  const std::string what = concat("heads ", c.heads, "/", c.kv_heads, " of ", d, ", ", c.pairs, " pairs");
  expect_close(q.host(), want_q, kBound, what + ": q");
  EXPECT_LE(relative_error(keys, want_keys), kBound) << what << ": keys";
  EXPECT_EQ(values, want_values) << what << ": values";
  for (const Tensor* pool : {&key_pool, &value_pool}) {
    const Values all = pool->values();
    EXPECT_EQ(std::count_if(all.begin(), all.end(), [](double value) { return !std::isnan(value); }),
              tokens * c.kv_heads * d)
        << what << ": wrote elsewhere too";
  }
}

class RopeKvWriteGpu : public GpuTest {};

TEST_F(RopeKvWriteGpu, MatchesReference) {
  Random random;
  for (const Case& c : {Case{32, 8, 128, 64},
                        {32, 8, 64, 32, false, 1, 500000},
                        {6, 3, 80, 40},
                        {4, 4, 96, 48},
                        {2, 1, 256, 128},
                        {12, 12, 64, 0},
                        {5, 1, 64, 8},
                        {4, 2, 80, 16},
                        {8, 2, 80, 10},
                        {4, 1, 128, 64, true},
                        {4, 2, 64, 16, true},
                        {3, 1, 24, 6, true, 1.25f},
                        {3, 1, 24, 6},
                        {2, 2, 6, 3},
                        {1, 1, 2, 1},
                        {28, 4, 128, 64, false, 0.8f, 1000000}}) {
    check_case(c, {{0, 5}, {37, 1}, {130, 20}}, random);   // few tokens
    check_case(c, {{3, 290}, {15, 1}, {16, 33}}, random);  // many: several heads a thread
  }
}

TEST_F(RopeKvWriteGpu, IsAccurateAtLongContexts) {
  Random random;
  check_case({2, 1, 128, 64, false, 1, 500000}, {{131000, 72}, {65535, 2}}, random);
  check_case({2, 1, 128, 64, false, 1, 10000}, {{1000000, 3}}, random);
}

// At a padding sequence's tokens the cache stays as it was, and q is still written.
TEST_F(RopeKvWriteGpu, WritesNothingForPadding) {
  Random random;
  for (const int tokens : {1, 300}) {
    PagedBatch batch({{3, 2}, {0, tokens}, {7, 1}}, {2, 16, 64, DType::kBfloat16}, random);
    batch.view().context_lengths.as<int32_t>()[1] = 0;
    GpuBatch gpu_batch(batch);
    const int count = batch.num_tokens();
    const GpuTensor qkv(Tensor::random(DType::kBfloat16, {count, 8 * 64}, random)), table(frequencies(32, 10000));
    const GpuTensor q(DType::kBfloat16, {count, 4 * 64});
    cuda::rope_kv_write({qkv, table, 1, false, gpu_batch.cache(), q}, gpu_batch.view(), gpu());
    for (const Tensor& pool : {gpu_batch.keys(), gpu_batch.values()}) {
      const Values all = pool.values();
      EXPECT_EQ(std::count_if(all.begin(), all.end(), [](double value) { return !std::isnan(value); }), 3 * 2 * 64);
      for (const int token : {0, 1, count - 1})
        EXPECT_FALSE(std::isnan(norm(read_head(batch, pool, token, 1, 64)))) << "token " << token;
    }
    const Values all = q.host().values();
    EXPECT_TRUE(std::none_of(all.begin(), all.end(), [](double value) { return std::isnan(value); }));
  }
}

// A kernel cannot throw: what the block table does not cover is left alone.
TEST_F(RopeKvWriteGpu, WritesNothingOutsideTheCache) {
  Random random;
  PagedBatch batch({{3, 2}}, {2, 4, 8, DType::kBfloat16}, random);
  batch.block_tables().set(1, 77);
  GpuBatch gpu_batch(batch);
  const GpuTensor qkv(Tensor::random(DType::kBfloat16, {2, 48}, random)), q(DType::kBfloat16, {2, 16});
  cuda::rope_kv_write({qkv, {}, 1, false, gpu_batch.cache(), q}, gpu_batch.view(), gpu());
  const Values all = gpu_batch.keys().values();
  EXPECT_EQ(std::count_if(all.begin(), all.end(), [](double value) { return !std::isnan(value); }), 2 * 8);
}

TEST_F(RopeKvWriteGpu, NamesWhatDoesNotFit) {
  Random random;
  PagedBatch batch({{3, 2}}, {2, 4, 8, DType::kBfloat16}, random);
  const Tensor wide(DType::kBfloat16, {2, 47}), q(DType::kBfloat16, {2, 16}), table(DType::kFloat32, {5});
  EXPECT_EQ(error_of(ErrorCode::kInvalidArgument,
                     [&] { cuda::rope_kv_write({wide, {}, 1, false, batch.cache(), q}, batch.view(), gpu()); }),
            "rope_kv_write: qkv is [2, 47] bfloat16, wanted [T=2, (Hq + 2 Hkv) D=48] bfloat16");
  EXPECT_EQ(error_of(ErrorCode::kInvalidArgument,
                     [&] { cuda::rope_kv_write({wide, table, 1, false, batch.cache(), q}, batch.view(), gpu()); }),
            "rope_kv_write: 5 frequencies rotate more than the head size 8");
}

// Few tokens and many are different kernels, as are sizes that allow vectors and those that do not.
TEST_F(RopeKvWriteGpu, ATokensKeyHasTheSameBitsInAnyCompany) {
  constexpr int kMany = 300;
  Random random;
  for (const Case& c : {Case{8, 8, 96, 12}, Case{8, 8, 128, 64}, Case{8, 8, 64, 15, true}}) {
    const Tensor qkv = Tensor::random(DType::kBfloat16, {kMany, (c.heads + 2 * c.kv_heads) * c.head_size}, random);
    const Tensor alone = keys_of(c, qkv, 1), together = keys_of(c, qkv, kMany);
    EXPECT_EQ(std::memcmp(alone.view().data, together.view().data, alone.view().bytes()), 0)
        << c.pairs << " pairs of head size " << c.head_size;
  }
}

}  // namespace
}  // namespace inflight::test
