#pragma once

#include "kernels/cuda/ops.h"
#include "tests/cuda/gpu_harness.h"
#include "tests/kernels/paged_batch.h"

/// A step through rope_attention on the GPU, and what the CPU's rope_kv_write and attention make of it.
namespace inflight::test::rope_attention {
inline constexpr double kGenerationBound = 4e-3, kContextBound = 6e-3;  // those of the two attention kernels' own tests

struct Case {
  int heads, kv_heads, head_size, block_size = 64;
  int pairs = -1;  // rotated pairs of a head; -1: all of it
  bool interleaved = false;
  float rope_scale = 1;
  int window = 0, sinks = 0;
  float soft_cap = 0;
  bool alibi = false;

  int q_width() const { return heads * head_size; }
  int qkv_width() const { return (heads + 2 * kv_heads) * head_size; }
  int num_pairs() const { return pairs < 0 ? head_size / 2 : pairs; }
  float scale() const { return 1 / std::sqrt(static_cast<float>(head_size)); }
  bool sees(int position, int key) const { return !window || key > position - window || key < sinks; }
  std::string name() const {
    return concat("heads ", heads, "/", kv_heads, " of ", head_size, ", blocks of ", block_size, ", ", num_pairs(),
                  interleaved ? " interleaved" : "", " pairs, window ", window, ", sinks ", sinks, ", cap ", soft_cap,
                  ", alibi ", alibi);
  }
};

inline Tensor frequencies(const Case& c) {
  Tensor out(DType::kFloat32, {c.num_pairs()});
  for (int i = 0; i < c.num_pairs(); ++i) out.set(i, std::pow(10000.0, -static_cast<double>(i) / c.num_pairs()));
  return out;
}

inline Tensor slopes(const Case& c) {
  Tensor out(DType::kFloat32, {c.heads});
  for (int h = 0; h < c.heads; ++h) out.set(h, std::pow(2.0, -8.0 * (h + 1) / c.heads));
  return out;
}

inline Tensor copy_of(const TensorView& ints) {
  return Tensor::ints({ints.as<int32_t>(), ints.as<int32_t>() + ints.elements()});
}

inline void copy_row(Tensor& to, int64_t to_at, const Tensor& from, int64_t from_at, int64_t elements) {
  std::memcpy(to.view().as<uint16_t>() + to_at, from.view().as<uint16_t>() + from_at, elements * 2);
}

/// What a step leaves behind.
struct Answer {
  Tensor keys, values, out;
};

enum Input { kPositions, kSequences, kOffsets, kLengths, kTables, kKeys, kValues, kQkv, kFrequencies, kSlopes };

/// A step of generating sequences, given by their lengths with the new token (0: padding), and of chunks of prompts
/// behind them. The cache is NaN wherever no token can look before the step has written.
class Step {
 public:
  Step(const Case& c, const std::vector<int>& lengths, const std::vector<Chunk>& chunks, Random& random)
      : case_(c),
        lengths_(lengths),
        batch_(all_chunks(lengths, chunks), {c.kv_heads, c.block_size, c.head_size, DType::kBfloat16}, random),
        qkv_(Tensor::random(DType::kBfloat16, {batch_.num_tokens(), c.qkv_width()}, random)) {
    const std::vector<Chunk> all = all_chunks(lengths, chunks);
    for (int s = 0; s < static_cast<int>(all.size()); ++s) {
      for (int j = 0; j < all[s].past; ++j)
        if (s >= num_generation() || c.sees(all[s].past, j)) fill(s, j, random);
      if (is_padding(s)) batch_.view().context_lengths.as<int32_t>()[s] = 0;
    }
  }

  /// Sequence `s` of another step, alone.
  Step(const Step& other, int s, Random& random) : Step(other.case_, {other.lengths_[s]}, {}, random) {
    const int d = case_.head_size;
    for (int j = 0; j < lengths_[0]; ++j)
      for (int h = 0; h < case_.kv_heads; ++h) {
        copy_row(batch_.keys(), batch_.at(0, j, h), other.batch_.keys(), other.batch_.at(s, j, h), d);
        copy_row(batch_.values(), batch_.at(0, j, h), other.batch_.values(), other.batch_.at(s, j, h), d);
      }
    copy_row(qkv_, 0, other.qkv_, static_cast<int64_t>(s) * case_.qkv_width(), case_.qkv_width());
  }

  const Case& shape() const { return case_; }
  const PagedBatch& batch() const { return batch_; }
  int num_generation() const { return static_cast<int>(lengths_.size()); }
  int num_sequences() const { return static_cast<int>(batch_.view().num_sequences()); }
  int last_position(int s) const { return batch_.position(batch_.view().query_offsets.as<int32_t>()[s + 1] - 1); }
  bool is_padding(int s) const { return s < num_generation() && lengths_[s] == 0; }

  /// For a device, in the order of Input. Its block tables name no block that nobody may look at.
  std::vector<Tensor> inputs() const {
    const BatchView view = batch_.view();
    return {copy_of(view.positions),
            copy_of(view.token_sequences),
            copy_of(view.query_offsets),
            copy_of(view.context_lengths),
            poisoned_tables(),
            batch_.keys(),
            batch_.values(),
            qkv_,
            frequencies(case_),
            slopes(case_)};
  }

  /// By the CPU's kernels, with q rounded to bfloat16 as a device keeps it.
  Answer on_cpu() const {
    PagedBatch batch = batch_;
    const int64_t tokens = batch.num_tokens();
    Tensor qkv(DType::kFloat32, {tokens, case_.qkv_width()}), q(DType::kFloat32, {tokens, case_.q_width()}), out(q);
    for (int64_t i = 0; i < qkv.size(); ++i) qkv.set(i, qkv_[i]);
    const Tensor table = frequencies(case_), slope = slopes(case_);
    ops().rope_kv_write(
        {qkv, case_.num_pairs() ? table.view() : TensorView(), case_.rope_scale, case_.interleaved, batch.cache(), q},
        batch.view(), context());
    for (int64_t i = 0; i < q.size(); ++i) q.set(i, decode_bfloat16(encode_bfloat16(q[i])));
    ops().attention({q, batch.cache(), case_.alibi ? slope.view() : TensorView(), case_.scale(), case_.window,
                     case_.soft_cap, out, case_.sinks},
                    batch.view(), context());
    return {batch.keys(), batch.values(), out};
  }

 private:
  static std::vector<Chunk> all_chunks(const std::vector<int>& lengths, const std::vector<Chunk>& chunks) {
    std::vector<Chunk> out;
    for (const int length : lengths) out.push_back({std::max(0, length - 1), 1});
    out.insert(out.end(), chunks.begin(), chunks.end());
    return out;
  }

  void fill(int s, int position, Random& random) {
    for (int h = 0; h < case_.kv_heads; ++h)
      for (int i = 0; i < case_.head_size; ++i) {
        batch_.keys().set(batch_.at(s, position, h, i), random.normal());
        batch_.values().set(batch_.at(s, position, h, i), random.normal());
      }
  }

  Tensor poisoned_tables() const {
    Tensor out = batch_.block_tables();
    const int64_t width = out.view().shape[1];
    for (int s = 0; s < num_sequences(); ++s)
      for (int b = 0; b < width; ++b)
        if (!is_block_visible(s, b)) out.set(s * width + b, b % 2 ? -1 : 1 << 30);
    return out;
  }

  bool is_block_visible(int s, int block) const {
    const int begin = block * case_.block_size, length = batch_.view().context_lengths.as<int32_t>()[s];
    for (int j = begin; j < std::min(length, begin + case_.block_size); ++j)
      if (s >= num_generation() || case_.sees(length - 1, j)) return true;
    return false;
  }

  Case case_;
  std::vector<int> lengths_;
  PagedBatch batch_;
  Tensor qkv_;
};

using Op = void (*)(const RopeKvWriteArgs&, const AttentionArgs&, const BatchView&, DeviceContext&);

inline void run_apart(const RopeKvWriteArgs& rope, const AttentionArgs& args, const BatchView& batch,
                      DeviceContext& device) {
  cuda::rope_kv_write(rope, batch, device);
  cuda::attention(args, batch, device);
}

/// A step's tensors on the GPU; q and out begin as NaN.
class GpuStep {
 public:
  explicit GpuStep(const Step& step)
      : case_(step.shape()),
        batch_(step.batch().view()),
        q_(DType::kBfloat16, {step.batch().num_tokens(), case_.q_width()}),
        out_(DType::kBfloat16, {step.batch().num_tokens(), case_.q_width()}) {
    for (const Tensor& input : step.inputs()) inputs_.emplace_back(input);
    batch_.token_ids = batch_.positions = inputs_[kPositions];
    batch_.token_sequences = inputs_[kSequences];
    batch_.query_offsets = inputs_[kOffsets];
    batch_.context_lengths = inputs_[kLengths];
    batch_.block_tables = inputs_[kTables];
    batch_.num_generation = step.num_generation();
  }

  /// The inputs of a step of the same shapes in place of its own, and NaN for the rest.
  void take(const Step& step) const {
    const std::vector<Tensor> inputs = step.inputs();
    for (size_t i = 0; i < inputs.size(); ++i) {
      ASSERT_EQ(describe(inputs[i].view()), describe(inputs_[i].view()));
      cuda::check_cuda(
          cudaMemcpy(inputs_[i].view().data, inputs[i].view().data, inputs[i].view().bytes(), cudaMemcpyHostToDevice),
          "up");
    }
    for (const GpuTensor* tensor : {&q_, &out_})
      cuda::check_cuda(cudaMemset(tensor->view().data, 0xff, tensor->view().bytes()), "poison");
    cuda::check_cuda(cudaDeviceSynchronize(), "up");
  }

  void enqueue(cuda::CudaContext& context, Op op = cuda::rope_attention) const {
    const KvCacheView cache{inputs_[kKeys], inputs_[kValues]};
    const TensorView table = case_.num_pairs() ? inputs_[kFrequencies].view() : TensorView();
    const TensorView slope = case_.alibi ? inputs_[kSlopes].view() : TensorView();
    cuda::prepare_step(batch_, context);
    op({inputs_[kQkv], table, case_.rope_scale, case_.interleaved, cache, q_},
       {q_, cache, slope, case_.scale(), case_.window, case_.soft_cap, out_, case_.sinks}, batch_, context);
  }

  Answer answer() const { return {inputs_[kKeys].host(), inputs_[kValues].host(), out_.host()}; }

 private:
  Case case_;
  BatchView batch_;
  std::vector<GpuTensor> inputs_;
  GpuTensor q_, out_;
};

inline Answer on_gpu(const Step& step, cuda::CudaContext& context, Op op = cuda::rope_attention) {
  const GpuStep device(step);
  device.enqueue(context, op);
  context.synchronize();
  return device.answer();
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
  return a.view().bytes() == b.view().bytes() && std::memcmp(a.view().data, b.view().data, a.view().bytes()) == 0;
}

/// Whether one is the other's bfloat16 or, where rounding was close, its neighbour. `slack` is an error before
/// rounding.
inline bool is_near(double got, double want, double slack) {
  return std::fabs(got - want) <= std::ldexp(std::fabs(want), -7) + slack;
}

/// The written rows are the CPU's, and every other element is as it was.
inline void expect_written(const Step& step, const Tensor& got, const Tensor& want, Tensor before, double slack,
                           const std::string& what) {
  const PagedBatch& batch = step.batch();
  const int d = step.shape().head_size;
  int wrong = 0;
  for (int t = 0; t < batch.num_tokens(); ++t)
    for (int h = 0; h < step.shape().kv_heads && !step.is_padding(batch.sequence(t)); ++h) {
      const int64_t at = batch.at(batch.sequence(t), batch.position(t), h);
      for (int i = 0; i < d; ++i)
        wrong += slack > 0 ? !is_near(got[at + i], want[at + i], slack) : got[at + i] != want[at + i];
      copy_row(before, at, got, at, d);
    }
  EXPECT_EQ(wrong, 0) << what << ": elements of written rows";
  EXPECT_TRUE(same_bits(got, before)) << what << ": wrote elsewhere too";
}

/// Sequence by sequence: a wrong long one would hide behind short ones, whose outputs are larger.
inline void expect_attended(const Step& step, const Tensor& got, const Tensor& want, const std::string& what) {
  const PagedBatch& batch = step.batch();
  const int width = step.shape().q_width();
  std::vector<Values> got_rows(step.num_sequences()), want_rows(got_rows);
  for (int t = 0; t < batch.num_tokens(); ++t) {
    const int s = batch.sequence(t);
    for (int64_t i = static_cast<int64_t>(t) * width; i < static_cast<int64_t>(t + 1) * width; ++i) {
      got_rows[s].push_back(got[i]);
      want_rows[s].push_back(step.is_padding(s) ? 0 : want[i]);
    }
  }
  for (int s = 0; s < step.num_sequences(); ++s) {
    const double bound = step.is_padding(s) ? 0 : s < step.num_generation() ? kGenerationBound : kContextBound;
    EXPECT_LE(relative_error(got_rows[s], want_rows[s]), bound)
        << what << ", sequence " << s << " up to position " << step.last_position(s);
  }
}

inline void expect_right(const Step& step, const Answer& got, const std::string& what) {
  const Answer want = step.on_cpu();
  const std::vector<Tensor> inputs = step.inputs();
  expect_written(step, got.keys, want.keys, inputs[kKeys], 2e-5, what + ": keys");
  expect_written(step, got.values, want.values, inputs[kValues], 0, what + ": values");
  expect_attended(step, got.out, want.out, what);
}

}  // namespace inflight::test::rope_attention
