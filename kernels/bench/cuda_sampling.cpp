#include <random>

#include "kernels/bench/cuda_bench.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/sampling.h"

namespace inflight::bench {
namespace {

constexpr int kHistory = 1024;  // tokens of a row

struct Kind {
  const char* name;
  SamplingRow row;
};

std::vector<Kind> kinds() {
  SamplingRow greedy, log_prob, drawn, top_k, top_p, both, penalised;
  greedy.temperature = 0;
  log_prob = greedy;
  log_prob.want_log_prob = true;
  top_k.top_k = 50;
  top_p.top_p = 0.9f;
  both.top_k = 50;
  both.top_p = 0.9f;
  penalised = both;
  penalised.repetition_penalty = 1.1f;
  penalised.frequency_penalty = 0.1f;
  return {{"greedy", greedy},
          {"greedy, log probs", log_prob},
          {"temperature", drawn},
          {"top-k 50", top_k},
          {"top-p 0.9", top_p},
          {"top-k 50, top-p 0.9", both},
          {"penalties, top-k 50, top-p 0.9", penalised}};
}

template <typename Value>
cuda::DeviceMemory upload(const std::vector<Value>& values) {
  cuda::DeviceMemory out(values.size() * sizeof(Value));
  cuda::check_cuda(cudaMemcpy(out.data(), values.data(), out.bytes(), cudaMemcpyHostToDevice), "upload");
  return out;
}

/// Normally distributed; where `peaked`, one in a thousand is up to 20 higher, as a trained model's likely tokens are.
std::vector<float> random_logits(size_t count, bool peaked) {
  std::mt19937 engine(count);
  std::normal_distribution<float> normal(0, 2);
  std::uniform_real_distribution<float> uniform;
  std::vector<float> out(std::min<size_t>(count, 1 << 22));
  for (float& value : out) value = normal(engine) + (peaked && uniform(engine) < 1e-3f ? 20 * uniform(engine) : 0.0f);
  for (size_t i = out.size(); i < count; ++i) out.push_back(out[i - (1 << 22)]);
  return out;
}

/// Buffers for `rows` rows, `rotations` times over.
class Inputs {
 public:
  Inputs(int64_t rows, int64_t vocabulary, int rotations, bool peaked)
      : rows_(rows),
        vocabulary_(vocabulary),
        logits_(upload(random_logits(rows * vocabulary * rotations, peaked))),
        history_(upload(std::vector<int32_t>(rows * (kHistory + 1), 77))),
        tokens_(rows * sizeof(int32_t)),
        log_probs_(rows * sizeof(float)) {}

  void set(SamplingRow row) {
    std::vector<int32_t> words(1), history(kHistory);
    std::vector<float> bias(1);
    std::vector<cuda::GpuSamplingRow> packed;
    row.history = history;
    row.prompt_length = kHistory / 2;
    for (int64_t i = 0; i < rows_; ++i) {
      row.seed = i;
      packed.push_back(cuda::pack_row(row, static_cast<int32_t>(i), vocabulary_, words, bias));
    }
    packed_ = upload(packed);
  }

  void sample(int rotation, cuda::CudaContext& context) const {
    float* const logits = logits_.as<float>() + rotation * rows_ * vocabulary_;
    cuda::sample({TensorView(logits, DType::kFloat32, {rows_, vocabulary_}),
                  packed_.as<cuda::GpuSamplingRow>(),
                  nullptr,
                  nullptr,
                  history_.as<int32_t>(),
                  kHistory + 1,
                  {{tokens_.as<int32_t>()}, {log_probs_.as<float>()}}},
                 context);
  }

 private:
  int64_t rows_, vocabulary_;
  cuda::DeviceMemory logits_, history_, tokens_, log_probs_, packed_;
};

void bench_sampling(Bench& bench) {
  constexpr int64_t kVocabulary = 128256;
  for (const bool peaked : {true, false})  // a nucleus of tens of tokens, or of a tenth of the vocabulary
    for (const int64_t rows : {1, 16, 64, 512}) {
      const int rotations = rows >= 512 ? 2 : static_cast<int>(256 / rows);
      Inputs inputs(rows, kVocabulary, rotations, peaked);
      for (const Kind& kind : kinds()) {
        inputs.set(kind.row);
        const Case what{"sampling",
                        concat("L ", rows, ", V ", kVocabulary, peaked ? ", peaked, " : ", flat, ", kind.name),
                        static_cast<double>(rows * kVocabulary) * sizeof(float)};
        bench.measure(what, [&](int i) { inputs.sample(i % rotations, bench.context()); }, rotations);
      }
    }
}

const Registered kSampling("sampling", bench_sampling);

}  // namespace
}  // namespace inflight::bench
