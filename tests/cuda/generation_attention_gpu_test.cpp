#include "kernels/cuda/attention_parts.h"
#include "tests/cuda/gpu_harness.h"
#include "tests/kernels/paged_batch.h"

namespace inflight::test {
namespace {

constexpr double kBound = 4e-3;  // bfloat16 weights and outputs

struct Case {
  int heads, kv_heads, head_size, block_size = 64;
  int window = 0;
  float soft_cap = 0;
  bool alibi = false;
  float score_scale = 1;
  int sinks = 0;

  float scale() const { return score_scale / std::sqrt(static_cast<float>(head_size)); }
  std::string name() const {
    return concat("heads ", heads, "/", kv_heads, " of ", head_size, ", blocks of ", block_size, ", window ", window,
                  ", sinks ", sinks, ", cap ", soft_cap, ", alibi ", alibi);
  }
};

// One generating sequence; of length 0: padding.
struct Sequence {
  Sequence(const Case& c, int length, Random& random)
      : length(length),
        query(Tensor::random(DType::kBfloat16, {c.heads, c.head_size}, random)),
        keys(Tensor::random(DType::kBfloat16, {length, c.kv_heads, c.head_size}, random)),
        values(Tensor::random(DType::kBfloat16, {length, c.kv_heads, c.head_size}, random)) {}

  int length;
  Tensor query;         // [Hq, D]
  Tensor keys, values;  // [length, Hkv, D]
};

std::vector<Sequence> make_sequences(const Case& c, const std::vector<int>& lengths, Random& random) {
  std::vector<Sequence> out;
  for (const int length : lengths) out.emplace_back(c, length, random);
  return out;
}

Tensor slopes(const Case& c) {
  Tensor out(DType::kFloat32, {c.heads});
  for (int h = 0; h < c.heads; ++h) out.set(h, std::pow(2.0, -8.0 * (h + 1) / c.heads));
  return out;
}

bool is_visible(const Case& c, int length, int position) {
  return position < length && (!c.window || position >= length - c.window || position < c.sinks);
}

// Attention of one head over the gathered keys and values, in double precision; zeros for padding.
Values reference(const Case& c, const Sequence& s, int head, double slope) {
  const int d = c.head_size, kv_head = head / (c.heads / c.kv_heads);
  Values weights, out(d);
  for (int j = 0; j < s.length; ++j) {
    if (!is_visible(c, s.length, j)) {
      weights.push_back(-HUGE_VAL);
      continue;
    }
    double score = 0;
    for (int i = 0; i < d; ++i) score += s.query[head * d + i] * s.keys[(j * c.kv_heads + kv_head) * d + i];
    score *= c.scale();
    if (c.soft_cap > 0) score = c.soft_cap * std::tanh(score / c.soft_cap);
    weights.push_back(score + slope * (j - (s.length - 1)));
  }
  const double top = weights.empty() ? 0 : *std::max_element(weights.begin(), weights.end());
  double sum = 0;
  for (double& weight : weights) sum += weight = std::exp(weight - top);
  for (int j = 0; j < s.length; ++j)
    for (int i = 0; i < d; ++i) out[i] += weights[j] / sum * s.values[(j * c.kv_heads + kv_head) * d + i];
  return out;
}

Values reference(const Case& c, const std::vector<Sequence>& sequences) {
  const Values slope = slopes(c).values();
  Values out;
  for (const Sequence& s : sequences)
    for (int h = 0; h < c.heads; ++h) {
      const Values row = reference(c, s, h, c.alibi ? slope[h] : 0);
      out.insert(out.end(), row.begin(), row.end());
    }
  return out;
}

std::vector<Chunk> chunks_of(const std::vector<Sequence>& sequences) {
  std::vector<Chunk> out;
  for (const Sequence& s : sequences) out.push_back({std::max(0, s.length - 1), 1});
  return out;
}

// A generation step on the GPU. The cache holds the visible tokens and NaN around them, the block tables the blocks of
// visible tokens and nonsense around them.
class Step {
 public:
  Step(const Case& c, const std::vector<Sequence>& sequences, Random& random)
      : case_(c),
        batch_(filled(c, sequences, random)),
        q_(queries(c, sequences)),
        out_(DType::kBfloat16, {q_.view().shape[0], q_.view().shape[1]}) {
    std::vector<int32_t> lengths;
    for (const Sequence& s : sequences) lengths.push_back(s.length);
    lengths_ = std::make_unique<GpuTensor>(Tensor::ints(lengths));
    tables_ = std::make_unique<GpuTensor>(batch_.block_tables());
    keys_ = std::make_unique<GpuTensor>(batch_.keys());
    values_ = std::make_unique<GpuTensor>(batch_.values());
    slopes_ = std::make_unique<GpuTensor>(slopes(c));
  }

  void enqueue(cuda::CudaContext& context) const {
    AttentionArgs args{q_, {*keys_, *values_}, {}, case_.scale(), case_.window, case_.soft_cap, out_, case_.sinks};
    if (case_.alibi) args.alibi_slopes = *slopes_;
    BatchView batch = batch_.view();
    batch.context_lengths = *lengths_;
    batch.block_tables = *tables_;
    batch.num_generation = static_cast<int>(lengths_->view().shape[0]);
    cuda::plan_generation_attention(batch, context);
    cuda::generation_attention(args, batch, context);
  }

  Tensor run(cuda::CudaContext& context) const {
    cuda::check_cuda(cudaMemset(out_.view().data, 0xff, out_.view().bytes()), "poison");
    enqueue(context);
    context.synchronize();
    return out_.host();
  }

  Tensor out() const { return out_.host(); }

  void set_lengths(const std::vector<int32_t>& lengths) {
    cuda::check_cuda(cudaMemcpy(lengths_->view().data, lengths.data(), lengths.size() * 4, cudaMemcpyHostToDevice),
                     "lengths");
  }

 private:
  static PagedBatch filled(const Case& c, const std::vector<Sequence>& sequences, Random& random) {
    PagedBatch batch(chunks_of(sequences), {c.kv_heads, c.block_size, c.head_size, DType::kBfloat16}, random);
    for (int s = 0; s < static_cast<int>(sequences.size()); ++s) {
      write_cache(c, sequences[s], s, batch);
      const auto width = batch.block_tables().view().shape[1];
      for (int b = 0; b < width; ++b)
        if (!is_block_visible(c, sequences[s].length, b)) batch.block_tables().set(s * width + b, b % 2 ? -1 : 1 << 30);
    }
    return batch;
  }

  static bool is_block_visible(const Case& c, int length, int block) {
    for (int j = block * c.block_size; j < (block + 1) * c.block_size; ++j)
      if (is_visible(c, length, j)) return true;
    return false;
  }

  static void write_cache(const Case& c, const Sequence& s, int index, PagedBatch& batch) {
    const size_t bytes = c.head_size * 2;
    const auto copy = [&](Tensor& pool, int64_t at, const Tensor& from, int64_t row) {
      std::memcpy(pool.view().as<uint16_t>() + at, from.view().as<uint16_t>() + row * c.head_size, bytes);
    };
    for (int j = 0; j < s.length; ++j)
      for (int h = 0; is_visible(c, s.length, j) && h < c.kv_heads; ++h) {
        copy(batch.keys(), batch.at(index, j, h), s.keys, j * c.kv_heads + h);
        copy(batch.values(), batch.at(index, j, h), s.values, j * c.kv_heads + h);
      }
  }

  static GpuTensor queries(const Case& c, const std::vector<Sequence>& sequences) {
    Tensor out(DType::kBfloat16, {static_cast<int64_t>(sequences.size()), c.heads * c.head_size});
    const size_t row = c.heads * c.head_size * 2;
    for (size_t s = 0; s < sequences.size(); ++s)
      std::memcpy(out.view().as<char>() + s * row, sequences[s].query.view().data, row);
    return GpuTensor(out);
  }

  Case case_;
  PagedBatch batch_;
  GpuTensor q_, out_;
  std::unique_ptr<GpuTensor> lengths_, tables_, keys_, values_, slopes_;
};

cuda::CudaContext& invariant_gpu() {
  static cuda::CudaContext context{[] {
    cuda::CudaOptions options;
    options.max_batch_size = 64;
    options.batch_invariant = true;
    return options;
  }()};
  return context;
}

void check_case(const Case& c, const std::vector<int>& lengths, Random& random) {
  const std::vector<Sequence> sequences = make_sequences(c, lengths, random);
  const Values want = reference(c, sequences);
  const Step step(c, sequences, random);
  expect_close(step.run(gpu()), want, kBound, c.name());
  if (lengths.size() <= 64) expect_close(step.run(invariant_gpu()), want, kBound, "invariant: " + c.name());
}

std::vector<int> random_lengths(int count, int low, int high, Random& random) {
  std::vector<int> out(count);
  for (int& length : out) length = random.integer(low, high);
  return out;
}

using GenerationAttentionGpu = GpuTest;

TEST_F(GenerationAttentionGpu, HeadSizesAndGroups) {
  Random random;
  for (const int head_size : {64, 80, 96, 128, 256})
    for (const int group : {1, 2, 4, 5, 7, 8})
      check_case({2 * group, 2, head_size}, {1, 15, 17, 63, 64, 65, 130, 0, 500, random.integer(600, 900)}, random);
}

TEST_F(GenerationAttentionGpu, WideGroups) {
  Random random;
  for (const int group : {16, 20, 71})
    for (const int head_size : {64, 256}) check_case({2 * group, 2, head_size}, {33, 300, 5}, random);
}

TEST_F(GenerationAttentionGpu, BlockSizes) {
  Random random;
  for (const int block_size : {16, 32, 64, 128, 256})
    for (const int head_size : {80, 128}) check_case({8, 2, head_size, block_size}, {1, 31, 100, 256, 1111}, random);
}

TEST_F(GenerationAttentionGpu, Sinks) {
  Random random;
  const std::vector<int> lengths = {1, 8, 63, 0, 64, 130, 1000, random.integer(2000, 3000)};
  for (const int window : {1, 64, 100, 1000})
    for (const int sinks : {1, 4, 16, 63, 64, 200, 5000})
      check_case({.heads = 8, .kv_heads = 2, .head_size = 64, .block_size = 16, .window = window, .sinks = sinks},
                 lengths, random);
  check_case({8, 2, 128, 64, 300, 3.0f, true, 1, 20}, lengths, random);
  check_case({8, 2, 256, 32, 100, 0, true, 1, 5}, lengths, random);
}

TEST_F(GenerationAttentionGpu, WindowsCapsAndSlopes) {
  Random random;
  const std::vector<int> lengths = {1, 8, 63, 0, 64, 130, 1000, random.integer(2000, 3000)};
  for (const int window : {1, 8, 64, 65, 1000, 5000}) check_case({8, 2, 64, 16, window}, lengths, random);
  check_case({8, 2, 128, 32, 0, 5.0f}, lengths, random);
  check_case({8, 2, 128, 32, 0, 0, true}, lengths, random);
  check_case({40, 2, 80, 32, 0, 0, true}, lengths, random);
  check_case({8, 2, 256, 64, 300, 3.0f, true}, lengths, random);
}

TEST_F(GenerationAttentionGpu, SkewedLengths) {
  Random random;
  std::vector<int> lengths = random_lengths(24, 0, 40, random);
  lengths[random.integer(0, 23)] = 6000;
  check_case({8, 2, 128}, lengths, random);
  check_case({2, 2, 64, 16}, lengths, random);
}

TEST_F(GenerationAttentionGpu, ManySequences) {
  Random random;
  for (const int count : {31, 33, 200, 512, 1100})
    check_case({4, 1, 64, 16}, random_lengths(count, 0, 150, random), random);
}

TEST_F(GenerationAttentionGpu, LargeScoresDoNotOverflow) {
  Random random;
  check_case({8, 2, 128, 64, 0, 0, false, 60}, {90, 700}, random);
}

TEST_F(GenerationAttentionGpu, PaddingIsZero) {
  Random random;
  const Case c{8, 2, 128};
  const Tensor out = Step(c, make_sequences(c, {0, 0, 0}, random), random).run(gpu());
  for (int64_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i], 0.0);
}

TEST_F(GenerationAttentionGpu, RunsAreBitIdentical) {
  Random random;
  const Case c{8, 2, 128};
  const Step step(c, make_sequences(c, random_lengths(20, 1, 2000, random), random), random);
  const std::string first = step.run(gpu()).bits();
  for (int i = 0; i < 20; ++i) ASSERT_EQ(step.run(gpu()).bits(), first);
}

TEST_F(GenerationAttentionGpu, InvariantRowsDoNotDependOnTheirCompany) {
  Random random;
  for (const Case& c : {Case{8, 2, 128}, Case{4, 4, 64, 16}, Case{40, 2, 256, 64, 700}}) {
    std::vector<int> lengths = random_lengths(12, 0, 500, random);
    for (const int length : {1, 100, 257, 700, 2500}) lengths.push_back(length);
    const std::vector<Sequence> sequences = make_sequences(c, lengths, random);
    const Tensor together = Step(c, sequences, random).run(invariant_gpu());
    for (size_t s = 0; s < sequences.size(); ++s) {
      const Tensor alone = Step(c, {sequences[s]}, random).run(invariant_gpu());
      ASSERT_EQ(alone.bits(), together.bits(s, s + 1)) << c.name() << ", length " << lengths[s];
    }
  }
}

// A captured graph serves other lengths than those it was captured with.
TEST_F(GenerationAttentionGpu, GraphsTakeLengthsFromTheDevice) {
  Random random;
  const Case c{8, 2, 128, 16};
  std::vector<Sequence> sequences = make_sequences(c, {700, 40, 333, 1500}, random);
  Step step(c, sequences, random);
  step.run(gpu());
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  cuda::check_cuda(cudaStreamBeginCapture(gpu().stream(), cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < 3; ++i) step.enqueue(gpu());
  cuda::check_cuda(cudaStreamEndCapture(gpu().stream(), &graph), "capture");
  cuda::check_cuda(cudaGraphInstantiate(&executable, graph, 0), "graph");
  const std::vector<std::vector<int32_t>> cases = {{700, 40, 333, 1500}, {1, 0, 200, 1499}, {0, 0, 5, 0}};
  for (const auto& lengths : cases) {
    step.set_lengths(lengths);
    cuda::check_cuda(cudaGraphLaunch(executable, gpu().stream()), "replay");
    gpu().synchronize();
    for (size_t s = 0; s < sequences.size(); ++s) sequences[s].length = lengths[s];
    expect_close(step.out(), reference(c, sequences), kBound, "replay");
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

TEST_F(GenerationAttentionGpu, NamesWhatItLacks) {
  Random random;
  const auto run = [&](const Case& c) { Step(c, make_sequences(c, {5}, random), random).run(gpu()); };
  EXPECT_EQ(error_of(ErrorCode::kUnsupported, [&] { run({2, 2, 72}); }),
            "attention: head size 72 is not among 64, 80, 96, 128 and 256");
  EXPECT_EQ(error_of(ErrorCode::kUnsupported, [&] { run({2, 2, 64, 8}); }),
            "attention: a KV block of 8 tokens, wanted a power of two from 16");
}

}  // namespace
}  // namespace inflight::test
