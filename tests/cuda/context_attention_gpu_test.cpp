#include "kernels/cuda/attention_parts.h"
#include "tests/cuda/gpu_harness.h"
#include "tests/kernels/paged_batch.h"

namespace inflight::test {
namespace {

constexpr double kBound = 6e-3;  // weights and outputs are rounded to bfloat16

struct Case {
  int heads, kv_heads, head_size, block_size = 64;
  int window = 0;
  float soft_cap = 0;
  bool alibi = false;
  int sinks = 0;
};

// Queries, keys and values of a whole sequence: [length, heads, D] each.
struct Sequence {
  Sequence(const Case& c, int length, Random& random)
      : length(length),
        queries(Tensor::random(DType::kBfloat16, {length, c.heads, c.head_size}, random, 2)),
        keys(Tensor::random(DType::kBfloat16, {length, c.kv_heads, c.head_size}, random)),
        values(Tensor::random(DType::kBfloat16, {length, c.kv_heads, c.head_size}, random)) {}

  int length;
  Tensor queries, keys, values;
};

Tensor slopes(const Case& c) {
  Tensor out(DType::kFloat32, {c.heads});
  for (int h = 0; h < c.heads; ++h) out.set(h, std::pow(2.0, -8.0 * (h + 1) / c.heads));
  return out;
}

float scale_of(const Case& c) { return 1.0f / std::sqrt(static_cast<float>(c.head_size)); }

// Output of the query at `position` under one head.
Values reference(const Case& c, const Sequence& s, int position, int head) {
  const int d = c.head_size, kv_head = head / (c.heads / c.kv_heads);
  const double slope = c.alibi ? slopes(c)[head] : 0;
  Values query(d), weights, out(d);
  for (int i = 0; i < d; ++i) query[i] = s.queries[(position * c.heads + head) * d + i];
  for (int j = 0; j <= position; ++j) {
    if (c.window && j <= position - c.window && j >= c.sinks) {
      weights.push_back(-HUGE_VAL);
      continue;
    }
    double score = 0;
    for (int i = 0; i < d; ++i) score += query[i] * s.keys[(j * c.kv_heads + kv_head) * d + i];
    score *= scale_of(c);
    if (c.soft_cap > 0) score = c.soft_cap * std::tanh(score / c.soft_cap);
    weights.push_back(score + slope * (j - position));
  }
  const double top = *std::max_element(weights.begin(), weights.end());
  double sum = 0;
  for (double& weight : weights) sum += weight = std::exp(weight - top);
  for (int j = 0; j <= position; ++j)
    for (int i = 0; i < d; ++i) out[i] += weights[j] / sum * s.values[(j * c.kv_heads + kv_head) * d + i];
  return out;
}

Tensor copy_of(const TensorView& ints) {
  return Tensor::ints({ints.as<int32_t>(), ints.as<int32_t>() + ints.elements()});
}

void copy_row(Tensor& to, int64_t to_row, const Tensor& from, int64_t from_row, int64_t elements) {
  std::memcpy(to.view().as<uint16_t>() + to_row * elements, from.view().as<uint16_t>() + from_row * elements,
              elements * 2);
}

// One step on the device: chunks of the sequences over a cache that is NaN wherever they have not written, behind
// tables that name no block past their end.
class Step {
 public:
  Step(const Case& c, const std::vector<Sequence>& sequences, const std::vector<Chunk>& chunks, Random& random)
      : case_(c), batch_(chunks, {c.kv_heads, c.block_size, c.head_size, DType::kBfloat16}, random) {
    for (size_t s = 0; s < chunks.size(); ++s)
      fill_cache(sequences[s], static_cast<int>(s), chunks[s].past + chunks[s].count);
    Tensor q(DType::kBfloat16, {batch_.num_tokens(), width()});
    for (int t = 0; t < batch_.num_tokens(); ++t)
      if (batch_.position(t) >= 0) copy_row(q, t, sequences[batch_.sequence(t)].queries, batch_.position(t), width());
    q_ = std::make_unique<GpuTensor>(q);
  }

  Tensor run(int num_generation) {
    const BatchView host = batch_.view();
    GpuTensor ids(copy_of(host.token_ids)), sequences(copy_of(host.token_sequences)),
        offsets(copy_of(host.query_offsets)), lengths(copy_of(host.context_lengths)), tables(batch_.block_tables()),
        keys(batch_.keys()), values(batch_.values()), table(slopes(case_)),
        out(DType::kBfloat16, {batch_.num_tokens(), width()});
    BatchView batch = host;
    batch.token_ids = batch.positions = ids;
    batch.token_sequences = sequences;
    batch.query_offsets = offsets;
    batch.context_lengths = lengths;
    batch.block_tables = tables;
    batch.num_generation = num_generation;
    AttentionArgs args{*q_, {keys, values}, {}, scale_of(case_), case_.window, case_.soft_cap, out, case_.sinks};
    if (case_.alibi) args.alibi_slopes = table;
    cuda::plan_context_attention(batch, gpu());
    for (int layer = 0; layer < 3; ++layer) cuda::context_attention(args, batch, gpu());
    return out.host();
  }

  const PagedBatch& batch() const { return batch_; }
  int width() const { return case_.heads * case_.head_size; }

 private:
  void fill_cache(const Sequence& sequence, int index, int end) {
    const int64_t pages = (end + case_.block_size - 1) / case_.block_size,
                  columns = batch_.block_tables().view().shape[1];
    for (int64_t page = std::max<int64_t>(pages, 0); page < columns; ++page)
      batch_.block_tables().set(index * columns + page, 1 << 30);
    for (int j = 0; j < end; ++j)
      for (int h = 0; h < case_.kv_heads; ++h) {
        const int64_t to = batch_.at(index, j, h) / case_.head_size;
        copy_row(batch_.keys(), to, sequence.keys, j * case_.kv_heads + h, case_.head_size);
        copy_row(batch_.values(), to, sequence.values, j * case_.kv_heads + h, case_.head_size);
      }
  }

  Case case_;
  PagedBatch batch_;
  std::unique_ptr<GpuTensor> q_;
};

std::vector<Sequence> sequences_for(const Case& c, const std::vector<Chunk>& chunks, Random& random) {
  std::vector<Sequence> out;
  for (const Chunk& chunk : chunks) out.emplace_back(c, std::max(1, chunk.past + chunk.count), random);
  return out;
}

// Whether a token's row is compared: all of short chunks, the ends and a sample of long ones.
bool is_compared(const Chunk& chunk, int offset, Random& random) {
  return chunk.count < 40 || offset < 2 || offset + 2 >= chunk.count || random.integer(0, chunk.count / 20) == 0;
}

void check_case(const Case& c, const std::vector<Chunk>& chunks, int num_generation = 0) {
  Random random;
  const std::vector<Sequence> sequences = sequences_for(c, chunks, random);
  Step step(c, sequences, chunks, random);
  const Tensor out = step.run(num_generation);
  const std::string what =
      concat("heads ", c.heads, "/", c.kv_heads, " of ", c.head_size, ", pages of ", c.block_size, ", window ",
             c.window, ", sinks ", c.sinks, ", cap ", c.soft_cap, ", slopes ", c.alibi);
  Values got, want;
  for (int t = 0; t < step.batch().num_tokens(); ++t) {
    const int s = step.batch().sequence(t), position = step.batch().position(t);
    if (s < num_generation) {
      EXPECT_EQ(out.bits(t, t + 1), std::string(step.width() * 2, '\xff')) << what << ": row " << t << " is not ours";
      continue;
    }
    const bool compared = is_compared(chunks[s], position - chunks[s].past, random);
    for (int h = 0; h < c.heads; ++h) {
      const Values row = position < 0 ? Values(c.head_size)
                         : compared   ? reference(c, sequences[s], position, h)
                                      : Values();
      want.insert(want.end(), row.begin(), row.end());
      for (int i = 0; i < c.head_size; ++i) {
        const double value = out[(t * c.heads + h) * c.head_size + i];
        ASSERT_TRUE(std::isfinite(value)) << what << ": token " << t << " head " << h << " element " << i;
        if (!row.empty()) got.push_back(value);
      }
    }
  }
  EXPECT_LE(relative_error(got, want), kBound) << what;
}

const std::vector<Chunk> kMixed = {{0, 1}, {0, 127}, {0, 128}, {37, 1}, {100, 129}, {0, 300}, {513, 65}, {63, 2}};

class ContextAttention : public GpuTest {};

TEST_F(ContextAttention, EveryHeadSizeAndGroup) {
  for (const int head_size : {64, 80, 96, 128, 256})
    for (const int group : {1, 4, 8}) check_case({2 * group, 2, head_size}, kMixed);
}

TEST_F(ContextAttention, OddGroups) {
  for (const int group : {3, 5, 7, 71}) check_case({group, 1, 64}, {{0, 33}, {90, 7}});
}

TEST_F(ContextAttention, EveryPageSize) {
  for (const int page : {8, 16, 32, 128, 256})
    for (const int head_size : {80, 128, 256}) check_case({8, 2, head_size, page}, {{0, 5}, {130, 200}, {0, 257}});
}

TEST_F(ContextAttention, LongChunks) {
  check_case({8, 2, 128, 16}, {{0, 700}, {1500, 333}, {2047, 1}});
  check_case({2, 2, 64}, {{0, 1500}, {900, 700}});
}

TEST_F(ContextAttention, Sinks) {
  for (const int head_size : {64, 128, 256}) {
    for (const int sinks : {1, 4, 64, 100, 1000})
      for (const int window : {1, 8, 100, 200})
        check_case(
            {.heads = 4, .kv_heads = 2, .head_size = head_size, .block_size = 32, .window = window, .sinks = sinks},
            {{0, 300}, {400, 150}});
    check_case({4, 2, head_size, 32, 130, 3.0f, true, 10}, {{0, 300}, {400, 150}});
  }
}

TEST_F(ContextAttention, Variants) {
  for (const int head_size : {64, 128, 256}) {
    for (const int window : {1, 8, 100, 200, 1000}) check_case({4, 2, head_size, 32, window}, {{0, 300}, {400, 150}});
    check_case({4, 2, head_size, 32, 0, 5.0f}, {{0, 300}, {400, 150}});
    check_case({4, 1, head_size, 32, 0, 0.0f, true}, {{0, 300}, {400, 150}});
    check_case({4, 2, head_size, 32, 130, 3.0f, true}, {{0, 300}, {400, 150}});
  }
}

TEST_F(ContextAttention, LeavesGenerationRowsAlone) {
  check_case({8, 2, 128}, {{50, 1}, {700, 1}, {3, 1}, {0, 140}, {20, 1}}, 3);
  check_case({8, 2, 128}, {{50, 1}, {700, 1}}, 2);
}

TEST_F(ContextAttention, PaddingSequencesGiveZeros) {
  check_case({8, 2, 128}, {{50, 1}, {0, 20}, {-37, 37}, {-1, 1}}, 1);
  check_case({4, 4, 64}, {{-140, 140}});
}

TEST_F(ContextAttention, ManySequences) {
  std::vector<Chunk> chunks;
  Random random;
  for (int s = 0; s < 300; ++s)
    chunks.push_back({random.integer(0, 3) ? 0 : random.integer(1, 200), random.integer(1, 20)});
  check_case({4, 1, 64, 16}, chunks, 0);
}

// Each token's bits: in one chunk or many, alone or in company, whatever the pages.
TEST_F(ContextAttention, TokensDoNotDependOnTheChunking) {
  Random random;
  for (Case c : {Case{8, 2, 128}, Case{4, 4, 64}, Case{7, 1, 80}, Case{8, 1, 256}, Case{4, 2, 96, 64, 150},
                 Case{4, 2, 128, 64, 0, 4.0f, true}}) {
    const int length = 700;
    std::vector<Sequence> sequences;
    for (const int l : {length, 260}) sequences.emplace_back(c, l, random);
    const Tensor whole = Step(c, sequences, {{0, length}}, random).run(0);
    for (int past = 0; past < length;) {
      c.block_size = 8 << random.integer(0, 4);
      const int count = std::min(length - past, random.integer(0, 1) ? random.integer(1, 9) : random.integer(10, 300));
      const Tensor part = Step(c, sequences, {{past, count}, {60, 200}}, random).run(0);
      ASSERT_EQ(part.bits(0, count), whole.bits(past, past + count))
          << "tokens " << past << " to " << past + count << " with pages of " << c.block_size;
      past += count;
    }
  }
}

TEST_F(ContextAttention, NamesWhatDoesNotFit) {
  Random random;
  const auto error = [&](const Case& c, DType dtype) {
    PagedBatch host({{0, 2}}, {c.kv_heads, c.block_size, c.head_size, DType::kBfloat16}, random);
    Tensor q(dtype, {2, c.heads * c.head_size});
    return error_of(
        dtype == DType::kBfloat16 && c.heads % c.kv_heads ? ErrorCode::kInvalidArgument : ErrorCode::kUnsupported,
        [&] { cuda::context_attention({q, host.cache(), {}, 1, 0, 0, q}, host.view(), gpu()); });
  };
  EXPECT_EQ(error({4, 2, 72}, DType::kBfloat16),
            "attention: heads of size 72; the context kernels are for 64, 80, 96, 128 and 256");
  EXPECT_EQ(error({4, 2, 64, 4}, DType::kBfloat16),
            "attention: KV blocks of 4 tokens; a power of two from 8 up is wanted");
  EXPECT_EQ(error({4, 2, 64, 48}, DType::kBfloat16),
            "attention: KV blocks of 48 tokens; a power of two from 8 up is wanted");
  EXPECT_EQ(error({3, 2, 64}, DType::kBfloat16),
            "attention: q [2, 192] bfloat16 is no multiple of 2 KV heads of size 64");
  EXPECT_EQ(error({4, 2, 64}, DType::kFloat32), "attention: q is [2, 256] float32, wanted [T, Hq D] bfloat16");
}

}  // namespace
}  // namespace inflight::test
