#include "tests/cuda/sampling_gpu_harness.h"

namespace inflight::test {
namespace {

struct Candidates {
  std::vector<int32_t> tokens;
  std::vector<float> log_probs;
};

Candidates rank_on_cpu(const Tensor& logits, const std::vector<SamplingRow>& rows, size_t total) {
  Tensor copy = logits;
  Candidates out{std::vector<int32_t>(total, -2), std::vector<float>(total, NAN)};
  ops().best_candidates({copy, rows, out.tokens, out.log_probs}, context(cpu::default_threads()));
  return out;
}

Candidates rank_on_gpu(const Tensor& logits, const std::vector<SamplingRow>& rows, size_t total) {
  const GpuRows gpu_rows(rows, own_slots(rows.size()), logits.view().shape[1]);
  const GpuTensor gpu_logits(logits), tokens(DType::kInt32, {static_cast<int64_t>(total)}),
      log_probs(DType::kFloat32, {static_cast<int64_t>(total)});
  const cuda::GpuSampleArgs shared = gpu_rows.args(gpu_logits, tokens, log_probs);
  std::vector<cuda::GpuSamplingRow> packed(rows.size());
  cuda::check_cuda(cudaMemcpy(packed.data(), shared.rows, packed.size() * sizeof(packed[0]), cudaMemcpyDeviceToHost),
                   "rows");
  std::vector<cuda::GpuCandidateRow> beams;
  for (size_t i = 0; i < rows.size(); ++i) {
    const int begin = beams.empty() ? 0 : beams.back().begin + beams.back().count;
    beams.push_back({packed[i], static_cast<int32_t>(i), begin, rows[i].num_candidates});
  }
  cuda::DeviceMemory memory(beams.size() * sizeof(beams[0]));
  cuda::check_cuda(cudaMemcpy(memory.data(), beams.data(), memory.bytes(), cudaMemcpyHostToDevice), "beams");
  cudaDeviceSynchronize();
  cuda::best_candidates(
      {gpu_logits.view(), 0, memory.as<cuda::GpuCandidateRow>(), static_cast<int64_t>(beams.size()), shared.words,
       shared.bias, shared.history, shared.history_stride, shared.results.tokens[0], shared.results.log_probs[0]},
      gpu());
  const Tensor out_tokens = tokens.host(), out_log_probs = log_probs.host();
  const int32_t* token = out_tokens.view().as<int32_t>();
  const float* log_prob = out_log_probs.view().as<float>();
  return {{token, token + total}, {log_prob, log_prob + total}};
}

class CandidatesGpuTest : public GpuTest {
 protected:
  static void expect_those_of_the_cpu(const Tensor& logits, const std::vector<SamplingRow>& rows) {
    size_t total = 0;
    for (const SamplingRow& row : rows) total += row.num_candidates;
    const Candidates want = rank_on_cpu(logits, rows, total), got = rank_on_gpu(logits, rows, total);
    EXPECT_EQ(got.tokens, want.tokens);
    for (size_t i = 0; i < total; ++i) {
      if (std::isfinite(want.log_probs[i]))
        EXPECT_NEAR(got.log_probs[i], want.log_probs[i], 5e-5 + 1e-6 * std::fabs(want.log_probs[i])) << "place " << i;
      else
        EXPECT_EQ(got.log_probs[i], want.log_probs[i]) << "place " << i;
    }
  }
};

Tensor random_logits(int64_t rows, int64_t vocabulary, uint64_t seed) {
  Random random(seed);
  Tensor out(DType::kFloat32, {rows, vocabulary});
  for (int64_t i = 0; i < rows * vocabulary; ++i) out.set(i, random.normal() * 3);
  return out;
}

TEST_F(CandidatesGpuTest, RankingsOfAnyVocabulary) {
  for (const int vocabulary : {1, 2, 5, 97, 4096, 4099, 32003, 128256})
    for (const int count : {1, 9, 40}) {
      std::vector<SamplingRow> rows(3);
      for (size_t i = 0; i < rows.size(); ++i) {
        rows[i].num_candidates = count + static_cast<int>(i);
        rows[i].temperature = i == 1 ? 0.0f : 0.6f;
      }
      expect_those_of_the_cpu(random_logits(3, vocabulary, vocabulary + count), rows);
    }
}

TEST_F(CandidatesGpuTest, RulesAndTies) {
  const int vocabulary = 5003;
  Tensor logits = random_logits(4, vocabulary, 3);
  for (int64_t i = 0; i < vocabulary; i += 7) logits.set(i, 4.0);  // ties among the best of the first row
  const std::vector<int32_t> history = {5, 9, 14, 9, 21, 5, 9}, ends = {0, 7}, words = {14, 9, 21}, word_ends = {1, 3};
  const std::vector<float> bias(vocabulary, 0.25f);
  SamplingRow row;
  row.num_candidates = 20;
  row.history = history;
  row.prompt_length = 3;
  row.repetition_penalty = 1.4f;
  row.presence_penalty = 0.3f;
  row.frequency_penalty = 0.2f;
  row.no_repeat_ngram_size = 2;
  row.min_tokens = 6;
  row.end_ids = ends;
  row.bad_words = words;
  row.bad_word_ends = word_ends;
  SamplingRow biased = row;
  biased.bias = bias;
  biased.prompt_ignore_length = 2;
  expect_those_of_the_cpu(logits, {row, biased, row, biased});
}

TEST_F(CandidatesGpuTest, InfiniteAndBrokenLogits) {
  Tensor logits = random_logits(4, 300, 4);
  for (const int64_t i : {17, 40, 299}) logits.set(i, kInfinity);
  for (int64_t i = 300; i < 600; ++i) logits.set(i, i % 2 ? NAN : -kInfinity);
  for (const int64_t i : {600, 777}) logits.set(i, NAN);
  std::vector<SamplingRow> rows(4);
  for (SamplingRow& row : rows) row.num_candidates = 12;
  expect_those_of_the_cpu(logits, rows);
}

}  // namespace
}  // namespace inflight::test
