// A whole decoder layer in generation steps of few sequences, where the gaps between kernels count as much as the
// kernels: as the plan has it, and with the residual sums in the products.

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
constexpr int64_t kSequences[] = {1, 2, 4, 8};
constexpr int64_t kContext = 256, kBlockSize = 64;
constexpr int64_t kRows = 32;  // of every activation's memory, as an engine has more rows than a small step fills

struct Fusions {
  bool sums, rope;
  const char* name;
};
constexpr Fusions kFusions[] = {
    {false, false, "nothing fused"}, {true, false, "sums in the products"}, {false, true, "rope in the attention"}};

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
  Layer(const Model& model, int64_t sequences, cuda::CudaContext& context)
      : model_(model),
        sequences_(sequences),
        context_(context),
        weights_(model),
        hidden_(random_buffer({kRows, model.hidden})),
        sum_(random_buffer({kRows, model.hidden})),
        normed_(random_buffer({kRows, model.hidden})),
        qkv_(random_buffer({kRows, model.qkv()})),
        q_(random_buffer({kRows, model.attended()})),
        attended_(random_buffer({kRows, model.attended()})),
        scratch_(random_buffer({kRows, 2 * model.inner})),
        inner_(random_buffer({kRows, model.inner})),
        keys_(random_buffer({sequences * kContext / kBlockSize, model.kv_heads, kBlockSize, model.head_size})),
        values_(random_buffer({sequences * kContext / kBlockSize, model.kv_heads, kBlockSize, model.head_size})),
        positions_(int_buffer(std::vector<int32_t>(sequences, kContext - 1))),
        owners_(int_buffer(counted(sequences))),
        offsets_(int_buffer(counted(sequences + 1))),
        lengths_(int_buffer(std::vector<int32_t>(sequences, kContext))),
        tables_(int_buffer(counted(sequences * kContext / kBlockSize), {sequences, kContext / kBlockSize})),
        frequencies_(float_buffer(std::vector<float>(model.head_size / 2, 0.01f))) {
    batch_.token_ids = batch_.positions = positions_;
    batch_.token_sequences = owners_;
    batch_.query_offsets = offsets_;
    batch_.context_lengths = lengths_;
    batch_.block_tables = tables_;
    batch_.max_query_length = 1;
    batch_.max_context_length = kContext;
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

  void run(const Fusions& fused) {
    norm(fused.sums);
    cuda::linear({rows(normed_), weights_.qkv, {}, rows(qkv_), kRows}, context_);
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
    cuda::linear_gated({rows(normed_), weights_.gate_up, rows(scratch_), rows(inner_), Activation::kSilu, kRows},
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
      cuda::linear_add({rows(x), weight, {}, rows(hidden_), kRows}, context_);
    else
      cuda::linear({rows(x), weight, {}, rows(sum_), kRows}, context_);
  }

  Model model_;
  int64_t sequences_;
  cuda::CudaContext& context_;
  Weights weights_;
  Buffer hidden_, sum_, normed_, qkv_, q_, attended_, scratch_, inner_, keys_, values_;
  Buffer positions_, owners_, offsets_, lengths_, tables_, frequencies_;
  BatchView batch_;
};

void bench_layer(Bench& bench) {
  for (const Model& model : kModels)
    for (const int64_t sequences : kSequences) {
      Layer layer(model, sequences, bench.context());
      for (const Fusions& fused : kFusions)
        bench.measure(
            {"layer", concat(model.name, ", S ", sequences, ", context ", kContext, ", ", fused.name), layer.bytes()},
            [&](int) { layer.run(fused); }, 1);
    }
}

const Registered kCases("layer", bench_layer);

}  // namespace
}  // namespace inflight::bench
