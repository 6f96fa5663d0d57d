#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_engine.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/skinny_linear.h"
#include "tests/cuda/linear_harness.h"

namespace inflight::test {
namespace {

constexpr double kSumBound = 2e-5;  // of float32 results

// [M, K] · [N, K]ᵀ + bias.
Values product(const Tensor& x, const Tensor& weight, const Tensor* bias) {
  const int64_t m = x.view().shape[0], k = x.view().shape[1], n = weight.view().shape[0];
  const Values a = x.values(), b = weight.values();
  Values out(m * n);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j)
      out[i * n + j] = std::inner_product(&a[i * k], &a[i * k] + k, &b[j * k], bias ? (*bias)[j] : 0.0);
  return out;
}

// weight = [Wg; Wu], [2 N, K].
Values gated_product(const Tensor& x, const Tensor& weight, Activation activation) {
  const int64_t m = x.view().shape[0], n = weight.view().shape[0] / 2;
  const Values both = product(x, weight, nullptr);
  Values out(m * n);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j)
      out[i * n + j] = activated(activation, rounded(both[i * 2 * n + j])) * rounded(both[i * 2 * n + n + j]);
  return out;
}

Tensor bf16(int64_t rows, int64_t columns, Random& random, double scale = 1) {
  return Tensor::random(DType::kBfloat16, {rows, columns}, random, scale);
}

class LinearGpu : public GpuTest {
 protected:
  Random random_;
};

TEST_F(LinearGpu, MatchesReference) {
  for (const auto& [n, k] :
       {std::pair{1, 1}, {7, 13}, {33, 64}, {40, 72}, {130, 256}, {257, 1000}, {64, 2112}, {10, 515}})
    for (const int m : {1, 2, 5, 8, 9, 16, 17, 33, 64, 65, 200}) {
      const Tensor x = bf16(m, k, random_), weight = bf16(n, k, random_);
      const Tensor bias = Tensor::random(DType::kBfloat16, {n}, random_);
      const GpuTensor gpu_x(x), gpu_weight(weight), gpu_bias(bias);
      for (const bool with_bias : {false, true})
        for (const DType dtype : {DType::kBfloat16, DType::kFloat32}) {
          const GpuTensor out(dtype, {m, n});
          cuda::linear({gpu_x, gpu_weight, with_bias ? gpu_bias.view() : TensorView{}, out}, gpu());
          expect_close(out.host(), product(x, weight, with_bias ? &bias : nullptr),
                       dtype == DType::kFloat32 ? kSumBound : kBf16Bound,
                       concat(m, " x ", n, " x ", k, with_bias ? " bias" : ""));
        }
    }
}

TEST_F(LinearGpu, GatedMatchesReference) {
  int next = 0;
  for (const auto& [n, k] : {std::pair{1, 8}, {7, 13}, {40, 72}, {130, 256}, {257, 1000}})
    for (const int m : {1, 3, 8, 16, 31, 64, 65, 130}) {
      const Activation activation = kActivations[next++ % std::size(kActivations)];
      const Tensor x = bf16(m, k, random_), weight = bf16(2 * n, k, random_, 0.1);
      const GpuTensor gpu_x(x), gpu_weight(weight), scratch(DType::kBfloat16, {m, 2 * n}),
          out(DType::kBfloat16, {m, n});
      cuda::linear_gated({gpu_x, gpu_weight, scratch, out, activation}, gpu());
      expect_close(out.host(), gated_product(x, weight, activation), kGatedBound,
                   concat(m, " x ", n, " x ", k, " activation ", static_cast<int>(activation)));
    }
}

TEST_F(LinearGpu, EverySkinnyVariantMatchesReference) {
  cuda::SkinnyLinear skinny(gpu());
  const int n = 1500, k = 1088;
  int tried = 0;
  for (const int m : {1, 2, 7, 8, 13, 16, 29, 32}) {
    const Tensor x = bf16(m, k, random_), weight = bf16(2 * n, k, random_, 0.1);
    const GpuTensor gpu_x(x), gpu_weight(weight);
    const Values plain = product(x, weight, nullptr), gated = gated_product(x, weight, Activation::kSilu);
    for (int rows = 8; rows <= 256; rows += 8)
      for (const int split : {1, 2, 4})
        for (const bool gate : {false, true}) {
          if (!cuda::SkinnyLinear::has({rows, split}, m, gate)) continue;
          ++tried;
          const int columns = gate ? n : 2 * n;
          const GpuTensor out(gate ? DType::kBfloat16 : DType::kFloat32, {m, columns});
          cuda::SkinnyProblem problem{
              gpu_x.view().data, gpu_weight.view().data, nullptr, out.view().data, m, columns, k};
          problem.float_out = !gate;
          problem.gated = gate;
          skinny.run(problem, {rows, split});
          expect_close(out.host(), gate ? gated : plain, gate ? kGatedBound : kSumBound,
                       concat("M ", m, " rows ", rows, " split ", split, gate ? " gated" : ""));
        }
  }
  EXPECT_GT(tried, 100);
}

TEST_F(LinearGpu, EveryCandidateMatchesReference) {
  cuda::LinearEngine engine(gpu());
  const int n = 264, k = 320;
  for (const int m : {12, 40, 130}) {
    const Tensor x = bf16(m, k, random_), weight = bf16(2 * n, k, random_, 0.1);
    const Tensor bias = Tensor::random(DType::kBfloat16, {n}, random_);
    const GpuTensor gpu_x(x), gpu_weight(weight), gpu_bias(bias), scratch(DType::kBfloat16, {m, 2 * n});
    const Values gated = gated_product(x, weight, Activation::kSilu);
    Tensor half(DType::kBfloat16, {n, k});
    std::memcpy(half.view().data, weight.view().data, half.view().bytes());
    const Values plain = product(x, half, &bias);
    for (const bool gate : {false, true}) {
      const cuda::LinearKey key{m, n, k, false, !gate, gate};
      int tiled = 0, slim = 0, skinny = 0;
      for (const cuda::LinearChoice& choice : engine.candidates(key)) {
        tiled += choice.kind == cuda::LinearChoice::Kind::kTiled;
        slim += choice.kind == cuda::LinearChoice::Kind::kSlim;
        skinny += choice.kind == cuda::LinearChoice::Kind::kSkinny;
        EXPECT_TRUE(engine.accepts(key, choice)) << cuda::text_of(choice);
        const GpuTensor out(DType::kBfloat16, {m, n});
        engine.run(key,
                   {gpu_x.view().data, gpu_weight.view().data, gate ? nullptr : gpu_bias.view().data,
                    scratch.view().data, out.view().data},
                   choice);
        expect_close(out.host(), gate ? gated : plain, gate ? kGatedBound : kBf16Bound,
                     concat(m, " rows, ", cuda::text_of(choice)));
      }
      EXPECT_EQ(skinny > 2, m <= 32);
      EXPECT_EQ(slim > 2, m <= 64);
      EXPECT_EQ(tiled > 2, m > 32);
    }
  }
  const cuda::LinearChoice tile{cuda::LinearChoice::Kind::kTiled, {}, {}, {128, 128, 1}};
  EXPECT_TRUE(engine.accepts({64, 64, 64}, tile));
  EXPECT_TRUE(engine.accepts({64, 64, 64, false, true, false, true}, tile)) << "added";
  EXPECT_FALSE(engine.accepts({64, 64, 64, true, false, false, true}, tile)) << "added in float32";
  EXPECT_FALSE(engine.accepts({32, 64, 64}, tile)) << "the skinny kernels' rows";
  EXPECT_FALSE(engine.accepts({64, 60, 64}, tile));
  EXPECT_FALSE(engine.accepts({64, 64, 64}, {cuda::LinearChoice::Kind::kTiled, {}, {}, {128, 100, 1}}));
  const cuda::LinearChoice slim{cuda::LinearChoice::Kind::kSlim, {}, {}, {}, {1, 2}};
  EXPECT_TRUE(engine.accepts({64, 64, 64}, slim));
  EXPECT_FALSE(engine.accepts({65, 64, 64}, slim)) << "the tiles' rows";
  EXPECT_FALSE(engine.accepts({8, 64, 64}, slim)) << "the skinny kernels' rows";
  EXPECT_FALSE(engine.accepts({64, 64, 64}, {cuda::LinearChoice::Kind::kSlim, {}, {}, {}, {2, 2}})) << "K of one chunk";
}

TEST_F(LinearGpu, RepeatsItsBits) {
  for (const int m : {1, 7, 16, 64, 300}) {
    const GpuTensor x(bf16(m, 4096, random_)), weight(bf16(1000, 4096, random_));
    const GpuTensor first(DType::kBfloat16, {m, 1000}), second(DType::kBfloat16, {m, 1000});
    cuda::linear({x, weight, {}, first}, gpu());
    cuda::linear({x, weight, {}, second}, gpu());
    EXPECT_EQ(first.host().bits(), second.host().bits()) << m;
  }
}

TEST_F(LinearGpu, ARowIsTheSameAloneAndInABatch) {
  cuda::CudaOptions options;
  options.batch_invariant = true;
  cuda::CudaContext context(options);
  for (const auto& [n, k] : {std::pair{768, 1024}, {4096, 4096}, {1000, 520}})
    for (const DType dtype : {DType::kBfloat16, DType::kFloat32}) {
      const int rows = 1000;
      const GpuTensor x(bf16(rows, k, random_)), weight(bf16(n, k, random_));
      const GpuTensor whole(dtype, {rows, n});
      cuda::linear({x, weight, {}, whole}, context);
      context.synchronize();
      const Tensor want = whole.host();
      for (const auto& [begin, m] : {std::pair{0, 1}, {17, 1}, {3, 2}, {5, 16}, {64, 64}, {100, 200}, {999, 1}}) {
        const TensorView part(x.view().as<uint16_t>() + begin * k, DType::kBfloat16, {m, k});
        const GpuTensor out(dtype, {m, n});
        cuda::linear({part, weight, {}, out}, context);
        context.synchronize();
        EXPECT_TRUE(out.host().bits() == want.bits(begin, begin + m))
            << "rows " << begin << " + " << m << " of K " << k;
      }
    }
}

TEST_F(LinearGpu, GatedRowIsTheSameAloneAndInABatch) {
  cuda::CudaOptions options;
  options.batch_invariant = true;
  cuda::CudaContext context(options);
  const int rows = 200, n = 512, k = 1024;
  const GpuTensor x(bf16(rows, k, random_)), weight(bf16(2 * n, k, random_, 0.1));
  const GpuTensor scratch(DType::kBfloat16, {rows, 2 * n}), whole(DType::kBfloat16, {rows, n});
  cuda::linear_gated({x, weight, scratch, whole}, context);
  context.synchronize();
  const GpuTensor alone_scratch(DType::kBfloat16, {1, 2 * n}), alone(DType::kBfloat16, {1, n});
  const TensorView row(x.view().as<uint16_t>() + 77 * k, DType::kBfloat16, {1, k});
  cuda::linear_gated({row, weight, alone_scratch, alone}, context);
  context.synchronize();
  EXPECT_TRUE(alone.host().bits() == whole.host().bits(77, 78));
}

TEST_F(LinearGpu, TunesOnceAndReadsTheChoicesBack) {
  const auto cache = std::filesystem::path(::testing::TempDir()) / concat("inflight_linear_", ::getpid(), ".cache");
  std::filesystem::remove(cache);
  cuda::CudaOptions options;
  options.tuning_cache = cache;
  const cuda::LinearShape shapes[] = {{768, 1024}, {512, 1024, false, false, true}, {1000, 1024, true, true}};
  const std::filesystem::file_time_type long_ago{};
  std::string written[2];
  for (int process : {0, 1}) {
    cuda::CudaContext context(options);
    cuda::linear(
        {GpuTensor(bf16(1, 8, random_)), GpuTensor(bf16(8, 8, random_)), {}, GpuTensor(DType::kFloat32, {1, 8})},
        context);
    cuda::tune_linear(shapes, 100, context);
    EXPECT_EQ(std::filesystem::last_write_time(cache) == long_ago, process == 1) << "who times anew writes";
    std::filesystem::last_write_time(cache, long_ago);
    std::ifstream in(cache);
    written[process].assign(std::istreambuf_iterator<char>(in), {});
    for (const int m : {1, 3, 16, 40, 100}) {
      const Tensor x = bf16(m, 1024, random_), weight = bf16(768, 1024, random_);
      const GpuTensor gpu_x(x), gpu_weight(weight), out(DType::kBfloat16, {m, 768});
      cuda::linear({gpu_x, gpu_weight, {}, out}, context);
      context.synchronize();
      expect_close(out.host(), product(x, weight, nullptr), kBf16Bound, concat("tuned, M ", m));
    }
  }
  EXPECT_EQ(std::count(written[0].begin(), written[0].end(), '\n'), 1 + 3 * 10);  // a header, buckets 1 to 128
  EXPECT_EQ(written[0], written[1]);
  std::filesystem::remove(cache);
}

TEST_F(LinearGpu, RunsInAGraph) {
  const Tensor x = bf16(4, 512, random_), weight = bf16(96, 512, random_);
  const GpuTensor gpu_x(x), gpu_weight(weight), out(DType::kBfloat16, {4, 96}), big(DType::kBfloat16, {300, 96});
  const GpuTensor big_x(bf16(300, 512, random_));
  cuda::linear({gpu_x, gpu_weight, {}, GpuTensor(DType::kBfloat16, {4, 96})}, gpu());
  gpu().synchronize();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  ASSERT_EQ(cudaStreamBeginCapture(gpu().stream(), cudaStreamCaptureModeGlobal), cudaSuccess);
  cuda::linear({big_x, gpu_weight, {}, big}, gpu());
  cuda::linear({gpu_x, gpu_weight, {}, out}, gpu());
  ASSERT_EQ(cudaStreamEndCapture(gpu().stream(), &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  ASSERT_EQ(cudaGraphLaunch(executable, gpu().stream()), cudaSuccess);
  expect_close(out.host(), product(x, weight, nullptr), kBf16Bound);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

TEST_F(LinearGpu, TakesNoRows) {
  const GpuTensor x(DType::kBfloat16, {0, 4}), weight(DType::kBfloat16, {3, 4}), out(DType::kBfloat16, {0, 3});
  EXPECT_NO_THROW(cuda::linear({x, weight, {}, out}, gpu()));
}

TEST_F(LinearGpu, NamesWhatDoesNotFit) {
  const GpuTensor x(DType::kBfloat16, {2, 4}), weight(DType::kBfloat16, {3, 5}), out(DType::kBfloat16, {2, 3});
  EXPECT_EQ(error_of(ErrorCode::kInvalidArgument, [&] { cuda::linear({x, weight, {}, out}, gpu()); }),
            "linear: weight is [3, 5] bfloat16, wanted [N, K=4] bfloat16");
  const GpuTensor wide(DType::kFloat32, {3, 4});
  EXPECT_EQ(error_of(ErrorCode::kUnsupported, [&] { cuda::linear({x, wide, {}, out}, gpu()); }),
            "linear: weight is [3, 4] float32, wanted [N, K=4] bfloat16");
  const GpuTensor odd(DType::kBfloat16, {5, 4}), scratch(DType::kBfloat16, {2, 6});
  EXPECT_EQ(error_of(ErrorCode::kInvalidArgument, [&] { cuda::linear_gated({x, odd, scratch, out}, gpu()); }),
            "linear_gated: weight is [5, 4] bfloat16, wanted [2 N=6, K=4] bfloat16");
}

}  // namespace
}  // namespace inflight::test
