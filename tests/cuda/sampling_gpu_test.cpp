#include "inflight_batcher/engine/cuda_memory.h"
#include "tests/cuda/sampling_gpu_harness.h"

namespace inflight::test {
namespace {

using Sampling = GpuTest;

// The shapes of logits that select in different ways: flat and peaked ones, and such with many ties.
enum class Shape { kNormal, kSteep, kPeaked, kTied, kCoarse, kOutlier };
constexpr Shape kShapes[] = {Shape::kNormal, Shape::kSteep,  Shape::kPeaked,
                             Shape::kTied,   Shape::kCoarse, Shape::kOutlier};

float shaped(Shape shape, float normal, int64_t id) {
  switch (shape) {
    case Shape::kNormal: return normal;
    case Shape::kSteep: return 6 * normal;
    case Shape::kPeaked: return normal + (normal > 2.5f ? 6 * normal : 0);
    case Shape::kTied: return 3.25f;
    case Shape::kCoarse: return std::round(4 * normal) / 4;
    case Shape::kOutlier: return id % 997 == 5 ? 1000 + normal : 1e-3f * normal;
  }
  return 0;
}

/// Row i has shape i modulo their number; each row begins elsewhere in one list of numbers.
Tensor shaped_logits(int64_t rows, int64_t vocabulary, Random& random) {
  std::vector<float> normals(vocabulary + 8191);
  for (float& normal : normals) normal = static_cast<float>(random.normal());
  Tensor out(DType::kFloat32, {rows, vocabulary});
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < vocabulary; ++j)
      out.view().as<float>()[i * vocabulary + j] =
          shaped(kShapes[i % std::size(kShapes)], normals[j + i * 127 % 8191], j);
  return out;
}

template <typename Value>
Value one_of(std::initializer_list<Value> values, Random& random) {
  return values.begin()[random.integer(0, static_cast<int>(values.size()) - 1)];
}

/// A row with everything that its spans borrow.
struct OwnedRow {
  SamplingRow row;
  std::vector<int32_t> history, bad_words, bad_word_ends, end_ids, stop_token_ids;
  std::vector<float> bias;
};

std::vector<int32_t> random_tokens(int count, int highest, Random& random) {
  std::vector<int32_t> out(count);
  for (int32_t& token : out) token = random.integer(0, highest);
  return out;
}

void add_filters(OwnedRow& owned, Random& random) {
  SamplingRow& row = owned.row;
  row.temperature = one_of({0.0f, 0.3f, 0.8f, 1.0f, 1.0f, 1.7f, 50.0f}, random);
  row.top_k = one_of({0, 0, 0, 1, 2, 20, 50, 200, 300, 600, 5000, 1 << 20}, random);
  row.top_p = one_of({1.0f, 1.0f, 0.999f, 0.95f, 0.9f, 0.9f, 0.5f, 0.1f, 0.0f}, random);
  row.min_p = one_of({0.0f, 0.0f, 0.0f, 0.02f, 0.3f, 1.0f}, random);
  row.seed = random.integer(0, 1 << 30) * uint64_t{0x123456789};
  row.stream = random.integer(0, 3);
  row.want_log_prob = random.integer(0, 2) == 0;
}

void add_penalties(OwnedRow& owned, Random& random) {
  SamplingRow& row = owned.row;
  row.repetition_penalty = one_of({1.0f, 1.3f, 0.7f}, random);
  row.presence_penalty = one_of({0.0f, 0.0f, 0.4f, -0.5f}, random);
  row.frequency_penalty = one_of({0.0f, 0.0f, 0.3f, -0.2f}, random);
  row.prompt_ignore_length = one_of({0, 0, 1, row.prompt_length / 2, row.prompt_length, 1 << 30}, random);
}

void add_bans(OwnedRow& owned, int vocabulary, Random& random) {
  SamplingRow& row = owned.row;
  const auto length = static_cast<int>(owned.history.size());
  row.no_repeat_ngram_size = one_of({0, 0, 1, 2, 3}, random);
  row.min_tokens = one_of({0, 0, length - row.prompt_length, length - row.prompt_length + 1, 1000}, random);
  owned.end_ids = random_tokens(3, vocabulary + 2, random);
  owned.stop_token_ids = random_tokens(2, vocabulary - 1, random);
  for (int i = random.integer(0, 4); i > 0; --i) {
    const int head = std::min(random.integer(0, 3), length);
    owned.bad_words.insert(owned.bad_words.end(), owned.history.end() - head, owned.history.end());
    owned.bad_words.push_back(random.integer(0, vocabulary - 1));
    owned.bad_word_ends.push_back(static_cast<int32_t>(owned.bad_words.size()));
  }
}

OwnedRow random_row(int vocabulary, Random& random) {
  OwnedRow out;
  out.history = random_tokens(one_of({0, 1, 40, 300, 3000}, random), std::min(vocabulary + 1, 2000), random);
  out.row.prompt_length = random.integer(0, static_cast<int>(out.history.size()));
  add_filters(out, random);
  if (random.integer(0, 1)) add_penalties(out, random);
  if (random.integer(0, 1)) add_bans(out, vocabulary, random);
  if (random.integer(0, 5) == 0)
    for (int i = 0; i < vocabulary; ++i) out.bias.push_back(i % 7 == 0 ? static_cast<float>(random.normal()) : 0.0f);
  return out;
}

std::vector<SamplingRow> borrowed(std::vector<OwnedRow>& owned) {
  std::vector<SamplingRow> out;
  for (OwnedRow& each : owned) {
    each.row.history = each.history;
    each.row.bad_words = each.bad_words;
    each.row.bad_word_ends = each.bad_word_ends;
    each.row.end_ids = each.end_ids;
    each.row.stop_token_ids = each.stop_token_ids;
    each.row.bias = each.bias;
    out.push_back(each.row);
  }
  return out;
}

TEST_F(Sampling, DrawsWhatTheCpuDraws) {
  Random random;
  for (const int vocabulary : {1, 50, 1000, 9999, 32000, 50257, 128256})
    for (const int count : {1, 3, 64, 300}) {
      SCOPED_TRACE(concat("vocabulary ", vocabulary, ", rows ", count));
      const Tensor logits = shaped_logits(count, vocabulary, random);
      std::vector<OwnedRow> owned;
      for (int i = 0; i < count; ++i) owned.push_back(random_row(vocabulary, random));
      const std::vector<SamplingRow> rows = borrowed(owned);
      std::vector<int> slots = random.permutation(count);
      for (int i = 3; i < count; i += 7) slots[i] = kPadding;
      expect_same(sample_on_gpu(logits, rows, slots), logits, rows, slots);
    }
}

// Each filter alone and together, on every shape of logits.
TEST_F(Sampling, EveryFilterOnEveryShape) {
  Random random;
  std::vector<SamplingRow> rows;
  for (const int top_k : {0, 2, 50, 257, 500, 3000, 40000})
    for (const float top_p : {1.0f, 0.99999f, 0.9f, 0.2f})
      for (const float min_p : {0.0f, 0.05f})
        for (size_t i = 0; i < std::size(kShapes); ++i) {
          SamplingRow row;
          row.top_k = top_k;
          row.top_p = top_p;
          row.min_p = min_p;
          row.temperature = one_of({0.5f, 1.0f, 2.0f}, random);
          row.seed = rows.size();
          rows.push_back(row);
        }
  const Tensor logits = shaped_logits(static_cast<int64_t>(rows.size()), 128256, random);
  const std::vector<int> slots = own_slots(rows.size());
  expect_same(sample_on_gpu(logits, rows, slots), logits, rows, slots);
}

TEST_F(Sampling, DrawsFollowTheFilteredSoftmax) {
  const std::vector<float> logits = {1.5f, -0.5f, 0.25f, 2.0f, 0.0f, -2.0f, 1.0f, 0.75f, -1.0f, 0.5f, 1.75f};
  constexpr int kDraws = 100000;
  SamplingRow row;
  row.temperature = 1.5f;
  for (const int top_k : {0, 4}) {
    row.top_k = top_k;
    Values want = softmax(logits, 1.5);
    const std::vector<int> order = ranking(want);
    for (size_t i = top_k ? top_k : order.size(); i < order.size(); ++i) want[order[i]] = 0;
    std::vector<SamplingRow> rows(kDraws, row);
    for (int i = 0; i < kDraws; ++i) rows[i].seed = i;
    std::vector<int> counts(logits.size());
    for (const int32_t token : sample_on_gpu(logits, rows).tokens) ++counts.at(token);
    expect_distribution(counts, want, concat("top_k ", top_k));
  }
}

TEST_F(Sampling, TiesGoToTheLowestId) {
  std::vector<float> logits(128256, -1);
  for (const int id : {70001, 70002, 128255, 90000}) logits[id] = 4;
  SamplingRow greedy, top_one;
  greedy.temperature = 0;
  top_one.top_k = 1;
  top_one.temperature = 3;
  EXPECT_EQ(sample_on_gpu(logits, {greedy, top_one}).tokens, (std::vector<int32_t>{70001, 70001}));
  logits.assign(128256, -0.0f);
  logits[5000] = 0.0f;
  EXPECT_EQ(sample_on_gpu(logits, {greedy}).tokens[0], 0) << "-0 is no less than 0";
}

TEST_F(Sampling, BrokenLogits) {
  std::vector<SamplingRow> rows;
  for (const float temperature : {0.0f, 1.0f, 1e-30f, 1e30f})
    for (const float top_p : {1.0f, 0.5f})
      for (const int top_k : {0, 2, 600}) {
        SamplingRow row;
        row.temperature = temperature;
        row.top_p = top_p;
        row.top_k = top_k;
        row.want_log_prob = true;
        row.seed = rows.size();
        rows.push_back(row);
      }
  std::vector<std::vector<float>> all = {
      {NAN, NAN, 1, NAN}, {-kInfinity, -kInfinity, -kInfinity, 3},   {0, kInfinity, 1, 2}, {NAN, -kInfinity, NAN},
      {NAN, -1, NAN},     {kInfinity, 0, kInfinity, NAN, kInfinity}, {3e38f, -3e38f, 2}};
  std::vector<float> large(20000, NAN), empty(20000, -kInfinity), infinite(20000, kInfinity);
  large[12345] = -2;
  large[19999] = 1;
  all.insert(all.end(), {large, empty, infinite});
  for (size_t i = 0; i < all.size(); ++i) {
    SCOPED_TRACE(concat("logits ", i));
    const Tensor logits = repeated(all[i], rows.size());
    expect_same(sample_on_gpu(logits, rows, own_slots(rows.size())), logits, rows, own_slots(rows.size()));
  }
}

TEST_F(Sampling, WhenAllIsBannedTheBestComesBack) {
  constexpr int kVocabulary = 9000;
  Random random;
  std::vector<float> logits(kVocabulary);
  for (float& logit : logits) logit = static_cast<float>(std::round(2 * random.normal()));
  std::vector<int32_t> words(kVocabulary), ends(kVocabulary);
  std::iota(words.begin(), words.end(), 0);
  std::iota(ends.begin(), ends.end(), 1);
  SamplingRow greedy;
  greedy.temperature = 0;
  greedy.bad_words = words;
  greedy.bad_word_ends = ends;
  SamplingRow drawn = greedy;
  drawn.temperature = 2;
  SamplingRow filtered = drawn;
  filtered.top_k = 40;
  filtered.top_p = 0.5f;
  const std::vector<SamplingRow> rows = {greedy, drawn, filtered};
  const Tensor all = repeated(logits, rows.size());
  expect_same(sample_on_gpu(all, rows, own_slots(rows.size())), all, rows, own_slots(rows.size()));
}

// A graph captured for padding serves any mix of rows.
TEST_F(Sampling, OneGraphServesAllRows) {
  constexpr int kVocabulary = 32000, kCount = 40;
  Random random;
  const Tensor logits = shaped_logits(kCount, kVocabulary, random);
  std::vector<OwnedRow> owned;
  for (int i = 0; i < kCount; ++i) owned.push_back(random_row(kVocabulary, random));
  const std::vector<SamplingRow> rows = borrowed(owned);
  const std::vector<int> slots = own_slots(kCount);
  const GpuRows real(rows, slots, kVocabulary), padding(rows, std::vector<int>(kCount, kPadding), kVocabulary);
  const GpuTensor gpu_logits(logits), tokens(DType::kInt32, {kCount}), log_probs(DType::kFloat32, {kCount});
  cuda::GpuSampleArgs args = real.args(gpu_logits, tokens, log_probs);
  cuda::DeviceMemory changing(real.memory().bytes());
  args.rows = changing.as<cuda::GpuSamplingRow>();
  const auto set_rows = [&](const GpuRows& from) {
    cudaDeviceSynchronize();
    gpu().copy(changing.data(), from.memory().data(), changing.bytes());
  };
  set_rows(padding);
  cuda::sample(args, gpu());
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  gpu().synchronize();
  cuda::check_cuda(cudaStreamBeginCapture(gpu().stream(), cudaStreamCaptureModeThreadLocal), "capture");
  cuda::sample(args, gpu());
  cuda::check_cuda(cudaStreamEndCapture(gpu().stream(), &graph), "capture");
  cuda::check_cuda(cudaGraphInstantiate(&executable, graph, 0), "graph");
  for (const GpuRows* from : {&padding, &real}) {
    set_rows(*from);
    cuda::check_cuda(cudaGraphLaunch(executable, gpu().stream()), "graph");
    const Tensor got = tokens.host(), got_log_probs = log_probs.host();
    const Sampled out{{got.view().as<int32_t>(), got.view().as<int32_t>() + kCount},
                      {got_log_probs.view().as<float>(), got_log_probs.view().as<float>() + kCount}};
    const bool padded = from == &padding;
    expect_same(out, logits, rows, padded ? std::vector<int>(kCount, kPadding) : slots);
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

// As a captured step does: the buffer's number changes from launch to launch, and the host reads what it picks.
TEST_F(Sampling, AnswersGoToTheBufferOfTheHostThatIsPicked) {
  constexpr int kVocabulary = 5000, kCount = 5;
  Random random;
  const Tensor logits = shaped_logits(kCount, kVocabulary, random);
  std::vector<SamplingRow> rows(kCount);
  for (SamplingRow& row : rows) row.temperature = 0, row.want_log_prob = true;
  const std::vector<int> slots = {0, 1, kPadding, 3, 4};
  const GpuRows gpu_rows(rows, slots, kVocabulary);
  const GpuTensor gpu_logits(logits), buffer(Tensor::ints({0})), unused(DType::kInt32, {kCount});
  PinnedMemory host(4 * kCount * sizeof(int32_t));
  auto* const words = reinterpret_cast<int32_t*>(host.data());
  auto* const numbers = reinterpret_cast<float*>(host.data()) + 2 * kCount;
  cuda::GpuSampleArgs args = gpu_rows.args(gpu_logits, unused, unused);
  args.results = {{words, words + kCount}, {numbers, numbers + kCount}};
  args.buffer = buffer.view().as<int32_t>();
  for (const int32_t picked : {1, 0}) {
    std::fill_n(words, 4 * kCount, -7);
    gpu().copy(buffer.view().data, &picked, sizeof(picked));
    cuda::sample(args, gpu());
    gpu().synchronize();
    const int32_t* const tokens = words + picked * kCount;
    const float* const log_probs = numbers + picked * kCount;
    expect_same({{tokens, tokens + kCount}, {log_probs, log_probs + kCount}}, logits, rows, slots);
    for (const int32_t* other : {words, words + 2 * kCount})
      for (int i = 0; i < kCount; ++i) EXPECT_EQ(other[(1 - picked) * kCount + i], -7) << picked;
  }
}

TEST_F(Sampling, ARowIsTheSameInAnyCompany) {
  Random random;
  const Tensor logits = shaped_logits(12, 50257, random);
  std::vector<SamplingRow> rows(12);
  for (size_t i = 0; i < rows.size(); ++i) rows[i].seed = i;
  const Sampled together = sample_on_gpu(logits, rows, own_slots(12));
  for (size_t i = 0; i < rows.size(); ++i) {
    Tensor alone(DType::kFloat32, {1, 50257});
    std::memcpy(alone.view().data, logits.view().as<float>() + i * 50257, alone.view().bytes());
    EXPECT_EQ(sample_on_gpu(alone, {rows[i]}, {0}).tokens[0], together.tokens[i]);
  }
}

TEST_F(Sampling, NamesWhatDoesNotFit) {
  const auto pack = [](const SamplingRow& row) {
    std::vector<int32_t> words;
    std::vector<float> bias;
    cuda::pack_row(row, 0, 6, words, bias);
  };
  SamplingRow row;
  row.temperature = -1;
  EXPECT_EQ(error_of(ErrorCode::kInvalidArgument, [&] { pack(row); }), "sample: temperature is -1, wanted >= 0");
  row.temperature = 1;
  row.prompt_length = 1;
  EXPECT_EQ(error_of(ErrorCode::kInvalidArgument, [&] { pack(row); }),
            "sample: prompt_length is 1, wanted at most the history's length");
  const std::vector<float> bias(3);
  row.prompt_length = 0;
  row.bias = bias;
  EXPECT_EQ(error_of(ErrorCode::kInvalidArgument, [&] { pack(row); }),
            "sample: number of biases is 3, wanted the vocabulary's size or none");
  cuda::GpuSampleArgs args;
  args.logits = TensorView(reinterpret_cast<void*>(256), DType::kBfloat16, {2, 6});
  error_of(ErrorCode::kUnsupported, [&] { cuda::sample(args, gpu()); });
  args.logits = TensorView(reinterpret_cast<void*>(256), DType::kFloat32, {12});
  error_of(ErrorCode::kInvalidArgument, [&] { cuda::sample(args, gpu()); });
  args.logits = TensorView(reinterpret_cast<void*>(256), DType::kFloat32, {2, 1 << 20});
  error_of(ErrorCode::kUnsupported, [&] { cuda::sample(args, gpu()); });
  args.logits = TensorView(reinterpret_cast<void*>(260), DType::kFloat32, {2, 6});
  error_of(ErrorCode::kInvalidArgument, [&] { cuda::sample(args, gpu()); });
}

}  // namespace
}  // namespace inflight::test
