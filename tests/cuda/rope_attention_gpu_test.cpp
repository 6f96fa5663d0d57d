#include "tests/cuda/rope_attention_harness.h"

namespace inflight::test::rope_attention {
namespace {

cuda::CudaContext& invariant_gpu() {
  static cuda::CudaContext& context = *new cuda::CudaContext{[] {
    cuda::CudaOptions options;
    options.max_batch_size = 64;
    options.batch_invariant = true;
    return options;
  }()};
  return context;
}

/// Right by the CPU's kernels; and the cache has the bits of rope_kv_write, so that it does not show which steps ran
/// fused.
void check_step(const Step& step, cuda::CudaContext& context, const std::string& what) {
  const Answer got = on_gpu(step, context), apart = on_gpu(step, context, run_apart);
  expect_right(step, got, what);
  EXPECT_TRUE(same_bits(got.keys, apart.keys)) << what << ": keys have other bits than rope_kv_write's";
  EXPECT_TRUE(same_bits(got.values, apart.values)) << what << ": values have other bits than rope_kv_write's";
}

void check_case(const Case& c, const std::vector<int>& lengths, Random& random, const std::vector<Chunk>& chunks = {}) {
  const Step step(c, lengths, chunks, random);
  const std::string what = concat(lengths.size(), " sequences, ", chunks.size(), " chunks, ", c.name());
  check_step(step, gpu(), what);
  if (step.num_sequences() <= 64) check_step(step, invariant_gpu(), "invariant: " + what);
}

constexpr int kLengthList[] = {64, 1, 1000, 17, 15, 65, 200, 16, 63};

/// `count` of them from the `first` on, around and around.
std::vector<int> lengths_from(int first, int count) {
  std::vector<int> out;
  for (int i = 0; i < count; ++i) out.push_back(kLengthList[(first + i) % std::size(kLengthList)]);
  return out;
}

using RopeAttentionGpu = GpuTest;

TEST_F(RopeAttentionGpu, OneSequenceOfAnyLength) {
  Random random;
  for (const Case& c : {Case{32, 8, 128}, Case{8, 8, 64, 16}}) {
    for (const int length : kLengthList) check_case(c, {length}, random);
    check_case(c, {random.integer(2000, 6000)}, random);
  }
}

TEST_F(RopeAttentionGpu, HeadsAndHeadSizes) {
  Random random;
  int turn = 0;
  for (const int head_size : {64, 80, 96, 128, 256})
    for (const auto& [heads, kv_heads] : {std::pair{32, 8}, {8, 8}, {16, 1}, {40, 8}}) {
      const int count = std::vector{1, 2, 5}[turn % 3];
      check_case({heads, kv_heads, head_size, turn % 2 ? 16 : 64}, lengths_from(3 * turn, count), random);
      check_case({heads, kv_heads, head_size, turn % 2 ? 64 : 16}, lengths_from(turn + 1, 3), random);
      ++turn;
    }
}

TEST_F(RopeAttentionGpu, NumbersOfSequences) {
  Random random;
  int turn = 0;
  for (const Case& c : {Case{8, 2, 64, 16}, Case{16, 1, 128, 64}, Case{4, 4, 80, 16}})
    for (const int count : {1, 2, 5, 8, 33}) check_case(c, lengths_from(turn++, count), random);
  check_case({4, 1, 64, 16}, lengths_from(0, 100), random);
}

// With more of them the rotation has a kernel of its own; where that begins depends on the number of multiprocessors.
TEST_F(RopeAttentionGpu, AboutAsManySequencesAsAreFused) {
  Random random;
  const int blocks = 2 * gpu().num_sms();  // of head size 128
  for (const int pairs_a_block : {1, 2, 3}) {
    const int most = pairs_a_block * blocks / 8;
    for (const int count : {most, most + 1}) {
      std::vector<int> lengths(count);
      for (int& length : lengths) length = random.integer(1, 150);
      check_case({8, 8, 128, 16}, lengths, random);
    }
  }
}

TEST_F(RopeAttentionGpu, Rotations) {
  Random random;
  for (const bool interleaved : {false, true})
    for (const auto& [head_size, pairs] :
         {std::pair{64, 0}, {64, 8}, {64, 16}, {80, 10}, {80, 16}, {96, 48}, {96, 5}, {128, 64}, {256, 32}})
      for (const int count : {1, 5})
        check_case({8, 2, head_size, interleaved ? 16 : 64, pairs, interleaved, count == 1 ? 1.25f : 1.0f},
                   lengths_from(pairs + count, count), random);
}

TEST_F(RopeAttentionGpu, PaddingStaysAsItWas) {
  Random random;
  for (const std::vector<int>& lengths : {std::vector{0, 17, 0, 0, 64, 1000, 0}, {0}, {0, 0, 5}, {33, 0}})
    for (const Case& c : {Case{8, 2, 128}, Case{16, 1, 64, 16}, Case{8, 8, 80, 16}}) check_case(c, lengths, random);
}

TEST_F(RopeAttentionGpu, ChunksOfPromptsBehindGeneratingSequences) {
  Random random;
  for (const Case& c : {Case{8, 2, 128}, Case{32, 8, 64, 16}, Case{16, 1, 96, 16, 20}, Case{8, 8, 256, 64, 0}}) {
    check_case(c, {65, 1, 0, 1000}, random, {{0, 5}, {130, 20}, {63, 1}, {0, 70}});
    check_case(c, {200}, random, {{0, 1}});
    check_case(c, {}, random, {{15, 2}, {64, 1}});
  }
}

TEST_F(RopeAttentionGpu, WindowsSinksCapsAndSlopes) {
  Random random;
  const std::vector<int> few = {200}, many = {1, 17, 0, 64, 65, 1000};
  for (const std::vector<int>& lengths : {few, many}) {
    for (const int window : {1, 16, 64, 65, 300}) {
      check_case({.heads = 8, .kv_heads = 2, .head_size = 64, .block_size = 16, .window = window}, lengths, random);
      for (const int sinks : {1, 4, 64, 500})
        check_case({.heads = 8, .kv_heads = 2, .head_size = 128, .block_size = 16, .window = window, .sinks = sinks},
                   lengths, random);
    }
    check_case({.heads = 8, .kv_heads = 2, .head_size = 128, .soft_cap = 5}, lengths, random);
    check_case({.heads = 40, .kv_heads = 8, .head_size = 80, .pairs = 0, .alibi = true}, lengths, random);
    check_case({8, 2, 256, 16, 64, true, 1.5f, 100, 5, 3.0f, true}, lengths, random);
  }
  check_case({8, 2, 128, 64, 64, false, 1, 100, 4, 5.0f, true}, many, random, {{0, 40}, {300, 7}});
}

TEST_F(RopeAttentionGpu, InvariantRowsDoNotDependOnTheirCompany) {
  Random random;
  for (const Case& c :
       {Case{8, 2, 128}, Case{4, 4, 64, 16}, Case{.heads = 16, .kv_heads = 1, .head_size = 80, .window = 100}}) {
    const Step together(c, lengths_from(0, 33), {{30, 50}}, random);
    const Answer all = on_gpu(together, invariant_gpu());
    for (int s = 0; s < 9; ++s) {
      const Step alone(together, s, random);
      const Answer one = on_gpu(alone, invariant_gpu());
      const int position = together.last_position(s);
      ASSERT_EQ(one.out.bits(0, 1), all.out.bits(s, s + 1)) << c.name() << ", position " << position;
      for (int h = 0; h < c.kv_heads; ++h)
        ASSERT_EQ(std::memcmp(one.keys.view().as<uint16_t>() + alone.batch().at(0, position, h),
                              all.keys.view().as<uint16_t>() + together.batch().at(s, position, h), c.head_size * 2),
                  0)
            << c.name() << ", position " << position;
    }
  }
}

TEST_F(RopeAttentionGpu, RunsAreBitIdentical) {
  Random random;
  for (const int count : {1, 9}) {
    const Step step({8, 2, 128}, lengths_from(2, count), {}, random);
    const GpuStep device(step);
    device.enqueue(gpu());
    const Answer first = device.answer();
    for (int i = 0; i < 20; ++i) {
      device.take(step);
      device.enqueue(gpu());
      const Answer again = device.answer();
      ASSERT_TRUE(same_bits(again.out, first.out) && same_bits(again.keys, first.keys)) << "run " << i;
    }
  }
}

// A captured graph serves other steps of its shape; its layers follow one another without a pause.
TEST_F(RopeAttentionGpu, GraphsTakeTheStepFromTheDevice) {
  Random random;
  const Case c{8, 2, 128, 16};
  const Step captured(c, {700, 40, 333, 1500}, {}, random);
  const GpuStep device(captured);
  device.enqueue(gpu());
  gpu().synchronize();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  cuda::check_cuda(cudaStreamBeginCapture(gpu().stream(), cudaStreamCaptureModeThreadLocal), "capture");
  for (int layer = 0; layer < 3; ++layer) device.enqueue(gpu());
  cuda::check_cuda(cudaStreamEndCapture(gpu().stream(), &graph), "capture");
  cuda::check_cuda(cudaGraphInstantiate(&executable, graph, 0), "graph");
  const std::vector<std::vector<int>> cases = {{700, 40, 333, 1500}, {1, 0, 1500, 1499}, {0, 0, 5, 1489}};
  for (const std::vector<int>& lengths : cases) {
    const Step step(c, lengths, {}, random);
    device.take(step);
    cuda::check_cuda(cudaGraphLaunch(executable, gpu().stream()), "replay");
    expect_right(step, device.answer(), "replay");
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

TEST_F(RopeAttentionGpu, NamesWhatDoesNotFit) {
  Random random;
  PagedBatch batch({{3, 1}}, {2, 16, 64, DType::kBfloat16}, random), other(batch);
  const Tensor qkv(DType::kBfloat16, {1, 8 * 64}), q(DType::kBfloat16, {1, 4 * 64}), out(q), wide(q);
  const auto error = [&](const Tensor& read, const KvCacheView& cache) {
    return error_of(ErrorCode::kInvalidArgument, [&] {
      cuda::rope_attention({qkv, {}, 1, false, batch.cache(), q}, {read, cache, {}, 1, 0, 0, out}, batch.view(), gpu());
    });
  };
  EXPECT_TRUE(error(wide, batch.cache()).starts_with("rope_attention: q of the attention is [1, 256] bfloat16 at "));
  EXPECT_TRUE(error(q, {other.keys(), batch.values()}).starts_with("rope_attention: keys of the attention is "));
  EXPECT_TRUE(error(q, {batch.keys(), other.values()}).starts_with("rope_attention: values of the attention is "));
}

// One in tens of thousands differs where a kernel contracts the sums of a rotation its own way.
TEST_F(RopeAttentionGpu, HalfAMillionKeysHaveTheBitsOfRopeKvWrite) {
  Random random;
  for (const int head_size : {64, 128}) {
    Case c{8, 8, head_size};
    c.window = 1;  // the past costs nothing
    for (int round = 0; round < 8; ++round) {
      const int few = std::min(64, 4 * gpu().num_sms() / c.heads);  // enough to run fused
      const Step step(c, std::vector<int>(few, 50), {}, random);
      EXPECT_TRUE(same_bits(on_gpu(step, gpu()).keys, on_gpu(step, gpu(), run_apart).keys))
          << "head size " << head_size;
    }
  }
}

}  // namespace
}  // namespace inflight::test::rope_attention
