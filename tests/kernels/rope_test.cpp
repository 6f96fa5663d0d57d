#include "tests/kernels/paged_batch.h"

namespace inflight::test {
namespace {

struct Case {
  int heads, kv_heads, head_size, pairs;
  bool interleaved = false;
  float scale = 1;
  DType cache = DType::kFloat32;
};

Tensor frequencies(int pairs) {
  Tensor out(DType::kFloat32, {pairs});
  for (int i = 0; i < pairs; ++i) out.set(i, std::pow(10000.0, -static_cast<double>(i) / pairs));
  return out;
}

// The rotated head, in double but for the angle, which is a float32 product in every implementation.
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

void check_case(const Case& c, Random& random) {
  PagedBatch batch({{0, 5}, {37, 1}, {130, 20}}, {c.kv_heads, 16, c.head_size, c.cache}, random);
  const int d = c.head_size, tokens = batch.num_tokens(), width = (c.heads + 2 * c.kv_heads) * d;
  const Tensor qkv = Tensor::random(DType::kFloat32, {tokens, width}, random);
  const Tensor table = frequencies(c.pairs);
  Tensor q(DType::kFloat32, {tokens, c.heads * d});
  const TensorView used = c.pairs ? table.view() : TensorView();
  ops().rope_kv_write({qkv, used, c.scale, c.interleaved, batch.cache(), q}, batch.view(), context());
  Values want_q, want_keys, want_values, keys, values;
  for (int t = 0; t < tokens; ++t) {
    const int64_t at = static_cast<int64_t>(t) * width;
    for (int h = 0; h < c.heads; ++h) append(want_q, rotated(c, qkv, at + h * d, batch.position(t), table));
    for (int h = 0; h < c.kv_heads; ++h) {
      append(want_keys, rotated(c, qkv, at + (c.heads + h) * d, batch.position(t), table));
      for (int i = 0; i < d; ++i) want_values.push_back(qkv[at + (c.heads + c.kv_heads + h) * d + i]);
      append(keys, read_head(batch, batch.keys(), t, h, d));
      append(values, read_head(batch, batch.values(), t, h, d));
    }
  }
  expect_close(q, want_q, 3e-7, "queries");
  const double cache_error = c.cache == DType::kFloat32 ? 3e-7 : c.cache == DType::kFloat16 ? 3e-4 : 2.5e-3;
  EXPECT_LE(relative_error(keys, want_keys), cache_error) << "keys, head size " << d;
  EXPECT_LE(relative_error(values, want_values), cache_error) << "values, head size " << d;
  EXPECT_TRUE(batch.keys().guard_intact() && batch.values().guard_intact());
}

TEST(RopeKvWrite, MatchesReference) {
  Random random;
  const Case cases[] = {{4, 2, 64, 32}, {7, 1, 40, 20}, {4, 4, 80, 16}, {8, 2, 128, 64}, {2, 2, 7, 3}, {4, 4, 64, 0}};
  for (Case c : cases)
    for (const bool interleaved : {false, true}) {
      c.interleaved = interleaved;
      c.scale = 1;
      check_case(c, random);
      c.scale = c.pairs ? 1.25f : 1.0f;
      check_case(c, random);
    }
}

TEST(RopeKvWrite, ConvertsIntoNarrowCaches) {
  Random random;
  for (const DType dtype : {DType::kFloat16, DType::kBfloat16}) check_case({4, 2, 64, 32, false, 1, dtype}, random);
}

// Values pass through unrotated, so they show the conversion alone, ties and subnormals included.
TEST(RopeKvWrite, RoundsToNearestEven) {
  Random random;
  for (const DType dtype : {DType::kFloat16, DType::kBfloat16}) {
    PagedBatch batch({{0, 600}}, {1, 16, 4, dtype}, random);
    Tensor qkv(DType::kFloat32, {600, 12}), q(DType::kFloat32, {600, 4});
    for (int i = 0; i < 600 * 12; ++i) qkv.set(i, std::ldexp(random.integer(-9000, 9000), random.integer(-28, -4)));
    ops().rope_kv_write({qkv, {}, 1, false, batch.cache(), q}, batch.view(), context());
    for (int t = 0; t < 600; ++t)
      for (int i = 0; i < 4; ++i) {
        Tensor want(dtype, {1});
        want.set(0, qkv[t * 12 + 8 + i]);
        ASSERT_EQ(batch.values()[batch.at(0, t, 0, i)], want[0]) << qkv[t * 12 + 8 + i];
      }
  }
}

TEST(RopeKvWrite, WritesNothingElse) {
  Random random;
  PagedBatch batch({{3, 2}}, {2, 4, 8}, random);
  const Tensor qkv = Tensor::random(DType::kFloat32, {2, 48}, random);
  Tensor q(DType::kFloat32, {2, 16});
  ops().rope_kv_write({qkv, frequencies(4), 1, false, batch.cache(), q}, batch.view(), context());
  const Values keys = batch.keys().values();
  EXPECT_EQ(std::count_if(keys.begin(), keys.end(), [](double value) { return !std::isnan(value); }), 2 * 2 * 8);
}

TEST(RopeKvWrite, RefusesPositionsOutsideTheTable) {
  Random random;
  PagedBatch batch({{3, 2}}, {2, 4, 8}, random);
  const Tensor qkv = Tensor::random(DType::kFloat32, {2, 48}, random);
  Tensor q(DType::kFloat32, {2, 16});
  const auto call = [&] { ops().rope_kv_write({qkv, {}, 1, false, batch.cache(), q}, batch.view(), context()); };
  batch.block_tables().set(1, 77);
  EXPECT_EQ(error_of(ErrorCode::kInternal, call), "KV block 77 of position 4 is outside the cache of 3 blocks");
  const Tensor wide = Tensor::random(DType::kFloat32, {2, 47}, random);
  EXPECT_EQ(error_of(ErrorCode::kInvalidArgument,
                     [&] { ops().rope_kv_write({wide, {}, 1, false, batch.cache(), q}, batch.view(), context()); }),
            "rope_kv_write: qkv is [2, 47] float32, wanted [T=2, (Hq + 2 Hkv) D=48] float32");
}

}  // namespace
}  // namespace inflight::test
