#pragma once

#include "kernels/cuda/sampling.h"
#include "tests/cuda/gpu_harness.h"
#include "tests/kernels/sampling_harness.h"

/// Sampling on the GPU, and its comparison with the CPU.
namespace inflight::test {

inline constexpr int kPadding = -1;
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Rows for the GPU in its own memory. A row whose slot is kPadding samples nothing.
class GpuRows {
 public:
  GpuRows(const std::vector<SamplingRow>& rows, const std::vector<int>& slots, int64_t vocabulary)
      : history_(poisoned_history(rows)) {
    std::vector<int32_t> words(1);
    std::vector<float> bias(1);
    std::vector<cuda::GpuSamplingRow> packed;
    for (size_t i = 0; i < rows.size(); ++i)
      packed.push_back(cuda::pack_row(rows[i], slots[i], vocabulary, words, bias));
    rows_ = upload(packed);
    words_ = upload(words);
    bias_ = upload(bias);
    Tensor history(DType::kInt32, {slots_of(rows), stride_of(rows)});
    for (size_t i = 0; i < rows.size(); ++i)
      for (size_t j = 0; slots[i] >= 0 && j < rows[i].history.size(); ++j)
        history.set(slots[i] * stride_of(rows) + static_cast<int64_t>(j), rows[i].history[j]);
    history_ = GpuTensor(history);
  }

  cuda::GpuSampleArgs args(const GpuTensor& logits, const GpuTensor& tokens, const GpuTensor& log_probs) const {
    return {logits.view(),
            rows_.as<cuda::GpuSamplingRow>(),
            words_.as<int32_t>(),
            bias_.as<float>(),
            history_.view().as<int32_t>(),
            history_.view().shape[1],
            {{tokens.view().as<int32_t>()}, {log_probs.view().as<float>()}}};
  }
  Tensor history() const { return history_.host(); }
  const cuda::DeviceMemory& memory() const { return rows_; }

 private:
  template <typename Value>
  static cuda::DeviceMemory upload(const std::vector<Value>& values) {
    cuda::DeviceMemory out(values.size() * sizeof(Value));
    cuda::check_cuda(cudaMemcpy(out.data(), values.data(), out.bytes(), cudaMemcpyHostToDevice), "upload");
    return out;
  }
  static int64_t slots_of(const std::vector<SamplingRow>& rows) { return static_cast<int64_t>(rows.size()) + 2; }
  static int64_t stride_of(const std::vector<SamplingRow>& rows) {
    size_t longest = 0;
    for (const SamplingRow& row : rows) longest = std::max(longest, row.history.size());
    return static_cast<int64_t>(longest) + 1;
  }
  static GpuTensor poisoned_history(const std::vector<SamplingRow>& rows) {
    return GpuTensor(DType::kInt32, {slots_of(rows), stride_of(rows)});
  }

  cuda::DeviceMemory rows_, words_, bias_;
  GpuTensor history_;
};

inline std::vector<int> own_slots(size_t count) {
  std::vector<int> out(count);
  std::iota(out.begin(), out.end(), 0);
  return out;
}

inline void expect_history(const GpuRows& gpu_rows, const std::vector<SamplingRow>& rows, const std::vector<int>& slots,
                           const std::vector<int32_t>& tokens) {
  const Tensor history = gpu_rows.history();
  std::vector<std::vector<int32_t>> want(history.view().shape[0]);
  for (size_t i = 0; i < rows.size(); ++i) {
    if (slots[i] == kPadding) continue;
    want[slots[i]].assign(rows[i].history.begin(), rows[i].history.end());
    want[slots[i]].push_back(tokens[i]);
  }
  const int64_t stride = history.view().shape[1];
  for (int64_t slot = 0; slot < history.view().shape[0]; ++slot) {
    want[slot].resize(stride, -1);
    const int32_t* got = history.view().as<int32_t>() + slot * stride;
    EXPECT_TRUE(std::equal(want[slot].begin(), want[slot].end(), got)) << "history of slot " << slot;
  }
}

inline Sampled sample_on_gpu(const Tensor& logits, const std::vector<SamplingRow>& rows,
                             const std::vector<int>& slots) {
  const auto count = static_cast<int64_t>(rows.size());
  const GpuRows gpu_rows(rows, slots, logits.view().shape[1]);
  const GpuTensor gpu_logits(logits), tokens(DType::kInt32, {count}), log_probs(DType::kFloat32, {count});
  cudaDeviceSynchronize();  // uploads run in another stream
  cuda::sample(gpu_rows.args(gpu_logits, tokens, log_probs), gpu());
  const Tensor out_tokens = tokens.host(), out_log_probs = log_probs.host();
  const int32_t* token = out_tokens.view().as<int32_t>();
  const float* log_prob = out_log_probs.view().as<float>();
  const Sampled out{{token, token + count}, {log_prob, log_prob + count}};
  expect_history(gpu_rows, rows, slots, out.tokens);
  return out;
}

inline Tensor repeated(const std::vector<float>& logits, size_t count) {
  Tensor out(DType::kFloat32, {static_cast<int64_t>(count), static_cast<int64_t>(logits.size())});
  for (size_t i = 0; i < count; ++i)
    std::copy(logits.begin(), logits.end(), out.view().as<float>() + i * logits.size());
  return out;
}

/// Every row from the same logits.
inline Sampled sample_on_gpu(const std::vector<float>& logits, const std::vector<SamplingRow>& rows) {
  return sample_on_gpu(repeated(logits, rows.size()), rows, own_slots(rows.size()));
}

inline Sampled sample_on_cpu(const Tensor& logits, const std::vector<SamplingRow>& rows) {
  Tensor copy = logits;
  Sampled out{std::vector<int32_t>(rows.size(), -1), std::vector<float>(rows.size(), NAN)};
  ops().sample({copy, rows, out.tokens, out.log_probs}, context(cpu::default_threads()));
  return out;
}

inline std::string text_of(const SamplingRow& row) {
  return concat("temperature ", row.temperature, ", top_k ", row.top_k, ", top_p ", row.top_p, ", min_p ", row.min_p,
                ", repetition ", row.repetition_penalty, ", presence ", row.presence_penalty, ", frequency ",
                row.frequency_penalty, ", ngram ", row.no_repeat_ngram_size, ", min_tokens ", row.min_tokens,
                ", history ", row.history.size(), " of which prompt ", row.prompt_length, ", bad words ",
                row.bad_word_ends.size(), ", bias ", row.bias.size());
}

/// In float64, and as log_probs is defined for broken logits: NaN and +inf count as -inf.
inline double log_prob_of(const float* logits, int64_t vocabulary, int32_t token) {
  const auto finite = [](float logit) { return logit < kInfinity ? static_cast<double>(logit) : -INFINITY; };
  double highest = -INFINITY, sum = 0;
  for (int64_t i = 0; i < vocabulary; ++i) highest = std::max(highest, finite(logits[i]));
  if (highest == -INFINITY) return -INFINITY;
  for (int64_t i = 0; i < vocabulary; ++i) sum += std::exp(finite(logits[i]) - highest);
  return finite(logits[token]) - highest - std::log(sum);
}

/// The tokens of the CPU, and log probs as float64 has them: the CPU's own sums are of float32.
inline void expect_same(const Sampled& got, const Tensor& logits, const std::vector<SamplingRow>& rows,
                        const std::vector<int>& slots) {
  const Sampled want = sample_on_cpu(logits, rows);
  const int64_t vocabulary = logits.view().shape[1];
  for (size_t i = 0; i < rows.size(); ++i) {
    if (slots[i] == kPadding) {
      EXPECT_EQ(got.tokens[i], 0);
      EXPECT_EQ(got.log_probs[i], 0);
      continue;
    }
    EXPECT_EQ(got.tokens[i], want.tokens[i]) << "row " << i << ": " << text_of(rows[i]);
    if (got.tokens[i] < 0 || got.tokens[i] >= vocabulary) continue;
    const double log_prob =
        rows[i].want_log_prob ? log_prob_of(logits.view().as<float>() + i * vocabulary, vocabulary, got.tokens[i]) : 0;
    if (std::isfinite(log_prob)) {
      EXPECT_NEAR(got.log_probs[i], log_prob, 4e-6 + 4e-7 * std::fabs(log_prob)) << "row " << i;
    } else {
      EXPECT_EQ(got.log_probs[i], log_prob) << "row " << i;
    }
  }
}

}  // namespace inflight::test
