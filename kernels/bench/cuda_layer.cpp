// A whole decoder layer in generation steps, with one fusion at a time: of few sequences the gaps between kernels count
// as much as the kernels. Of many also for as long as it takes to meet the GPU's power limit, under which throughput
// runs are: a kernel that is fast in a cool moment may be slow there, at three quarters of the clock.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/bench/cuda_bench.h"
#include "kernels/bench/cuda_data.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/ops.h"

namespace inflight::bench {
namespace {

struct Model {
  const char* name;
  int64_t hidden, heads, kv_heads, head_size, inner;
  int64_t qkv() const { return (heads + 2 * kv_heads) * head_size; }
  int64_t attended() const { return heads * head_size; }
};

constexpr Model kModels[] = {{"llama3-8b", 4096, 32, 8, 128, 14336}, {"llama3-1b", 2048, 32, 8, 64, 8192}};
constexpr int64_t kSequences[] = {1, 2, 4, 8, 16, 32, 64, 128, 256};
constexpr int64_t kContexts[] = {256, 1024}, kBlockSize = 64;
constexpr int64_t kLeastRows = 32;  // of every activation's memory: an engine has more rows than a small step fills
constexpr int64_t kManySequences = 512, kManyContexts[] = {192, 1536};
constexpr double kSustainedSeconds = 1.0;

struct Fusions {
  bool sums, rope;
  const char* name;
};
constexpr Fusions kFusions[] = {
    {false, false, "nothing fused"}, {true, false, "sums in the products"}, {false, true, "rope_attention"}};

/// The weights of one layer: far more than the L2 cache holds.
struct Weights {
  explicit Weights(const Model& m)
      : qkv(random_buffer({m.qkv(), m.hidden}, 0.02f)),
        out(random_buffer({m.hidden, m.attended()}, 0.02f)),
        gate_up(random_buffer({2 * m.inner, m.hidden}, 0.02f)),
        down(random_buffer({m.hidden, m.inner}, 0.02f)),
        norm(random_buffer({m.hidden})) {}
  double bytes() const {
    double total = 0;
    for (const Buffer* buffer : {&qkv, &out, &gate_up, &down}) total += static_cast<double>(buffer->view.bytes());
    return total;
  }
  Buffer qkv, out, gate_up, down, norm;
};

class Layer {
 public:
  Layer(const Model& model, int64_t sequences, int64_t context_length, cuda::CudaContext& context)
      : model_(model),
        sequences_(sequences),
        rows_(std::max(sequences, kLeastRows)),
        blocks_(context_length / kBlockSize),
        context_(context),
        weights_(model),
        hidden_(random_buffer({rows_, model.hidden})),
        sum_(random_buffer({rows_, model.hidden})),
        normed_(random_buffer({rows_, model.hidden})),
        qkv_(random_buffer({rows_, model.qkv()})),
        q_(random_buffer({rows_, model.attended()})),
        attended_(random_buffer({rows_, model.attended()})),
        scratch_(random_buffer({rows_, 2 * model.inner})),
        inner_(random_buffer({rows_, model.inner})),
        keys_(random_buffer({sequences * blocks_, model.kv_heads, kBlockSize, model.head_size})),
        values_(random_buffer({sequences * blocks_, model.kv_heads, kBlockSize, model.head_size})),
        positions_(int_buffer(std::vector<int32_t>(sequences, static_cast<int32_t>(context_length) - 1))),
        owners_(int_buffer(counted(sequences))),
        offsets_(int_buffer(counted(sequences + 1))),
        lengths_(int_buffer(std::vector<int32_t>(sequences, static_cast<int32_t>(context_length)))),
        tables_(int_buffer(counted(sequences * blocks_), {sequences, blocks_})),
        frequencies_(float_buffer(std::vector<float>(model.head_size / 2, 0.01f))) {
    batch_.token_ids = batch_.positions = positions_;
    batch_.token_sequences = owners_;
    batch_.query_offsets = offsets_;
    batch_.context_lengths = lengths_;
    batch_.block_tables = tables_;
    batch_.max_query_length = 1;
    batch_.max_context_length = static_cast<int>(context_length);
    batch_.num_generation = static_cast<int>(sequences);
    const std::vector<cuda::LinearShape> shapes = {{model.qkv(), model.hidden},
                                                   {model.hidden, model.attended()},
                                                   {model.hidden, model.attended(), false, false, false, true},
                                                   {model.inner, model.hidden, false, false, true},
                                                   {model.hidden, model.inner},
                                                   {model.hidden, model.inner, false, false, false, true}};
    cuda::tune_linear(shapes, static_cast<int>(sequences), context);
    run(kFusions[0]);  // the attention makes its plan
  }

  double bytes() const { return weights_.bytes(); }
  double cache_bytes() const { return static_cast<double>(keys_.view.bytes() + values_.view.bytes()); }

  void run(const Fusions& fused) {
    norm(fused.sums);
    cuda::linear({rows(normed_), weights_.qkv, {}, rows(qkv_), rows_}, context_);
    const KvCacheView cache{keys_, values_};
    const RopeKvWriteArgs rope{rows(qkv_), frequencies_, 1.0f, false, cache, rows(q_)};
    AttentionArgs attention{};
    attention.q = rows(q_);
    attention.cache = cache;
    attention.out = rows(attended_);
    attention.scale = 0.1f;
    if (fused.rope) {
      cuda::rope_attention(rope, attention, batch_, context_);
    } else {
      cuda::rope_kv_write(rope, batch_, context_);
      cuda::attention(attention, batch_, context_);
    }
    add(fused.sums, attended_, weights_.out);
    norm(fused.sums);
    cuda::linear_gated({rows(normed_), weights_.gate_up, rows(scratch_), rows(inner_), Activation::kSilu, rows_},
                       context_);
    add(fused.sums, inner_, weights_.down);
  }

 private:
  static std::vector<int32_t> counted(int64_t size) {
    std::vector<int32_t> list(size);
    std::iota(list.begin(), list.end(), 0);
    return list;
  }
  /// The rows of the step.
  TensorView rows(const Buffer& buffer) const {
    TensorView view = buffer;
    view.shape[0] = sequences_;
    return view;
  }

  void norm(bool sums_fused) {
    const TensorView residual = sums_fused ? TensorView{} : rows(hidden_);
    cuda::rms_norm({rows(sums_fused ? hidden_ : sum_), residual, weights_.norm, rows(normed_)}, context_);
  }

  void add(bool sums_fused, const Buffer& x, const Buffer& weight) {
    if (sums_fused)
      cuda::linear_add({rows(x), weight, {}, rows(hidden_), rows_}, context_);
    else
      cuda::linear({rows(x), weight, {}, rows(sum_), rows_}, context_);
  }

  Model model_;
  int64_t sequences_, rows_, blocks_;  // blocks of a sequence
  cuda::CudaContext& context_;
  Weights weights_;
  Buffer hidden_, sum_, normed_, qkv_, q_, attended_, scratch_, inner_, keys_, values_;
  Buffer positions_, owners_, offsets_, lengths_, tables_, frequencies_;
  BatchView batch_;
};

void bench_layer(Bench& bench) {
  for (const Model& model : kModels)
    for (const int64_t length : kContexts)
      for (const int64_t sequences : kSequences) {
        Layer layer(model, sequences, length, bench.context());
        for (const Fusions& fused : kFusions)
          bench.measure(
              {"layer", concat(model.name, ", S ", sequences, ", context ", length, ", ", fused.name),
               layer.bytes() + layer.cache_bytes(), layer.bytes() * static_cast<double>(sequences)},
              [&](int) { layer.run(fused); }, 1);
      }
}

void bench_sustained(Bench& bench) {
  for (const int64_t length : kManyContexts) {
    Layer layer(kModels[0], kManySequences, length, bench.context());
    bench.measure_sustained(
        {"layer", concat(kModels[0].name, ", S ", kManySequences, ", context ", length),
         layer.bytes() + layer.cache_bytes(), layer.bytes() * kManySequences},
        [&](int) { layer.run(kFusions[2]); }, 1, kSustainedSeconds);
  }
}

const Registered kCases("layer", bench_layer);
const Registered kSustained("layer_sustained", bench_sustained);

}  // namespace
}  // namespace inflight::bench
