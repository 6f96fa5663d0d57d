#include "kernels/cuda/ops.h"
#include "tests/cuda/gpu_harness.h"

namespace inflight::test {
namespace {

class EmbeddingGpu : public GpuTest {};

std::vector<int32_t> random_rows(int count, int limit, Random& random) {
  std::vector<int32_t> rows(count);
  for (int32_t& row : rows) row = random.integer(0, limit - 1);
  return rows;
}

TEST_F(EmbeddingGpu, CopiesTheRowsOfTheTable) {
  Random random;
  for (const int size : {1, 7, 8, 768, 2048, 4096, 4100, 16384})
    for (const int tokens : {1, 3, 300}) {
      const int vocabulary = random.integer(1, 50);
      const Tensor table = Tensor::random(DType::kBfloat16, {vocabulary, size}, random);
      const std::vector<int32_t> ids = random_rows(tokens, vocabulary, random);
      const GpuTensor table_gpu(table), ids_gpu(Tensor::ints(ids)), out(DType::kBfloat16, {tokens, size});
      cuda::embedding({ids_gpu, table_gpu, out}, gpu());
      const Tensor got = out.host();
      for (int t = 0; t < tokens; ++t) ASSERT_EQ(got.bits(t, t + 1), table.bits(ids[t], ids[t] + 1)) << size;
    }
}

// Rows are fetched while the kernel before still runs. Here that one writes the ids, so what was fetched is wrong.
TEST_F(EmbeddingGpu, FetchesAnewWhereTheKernelBeforeChangesTheIds) {
  constexpr int kVocabulary = 50, kSteps = 16;
  Random random;
  for (const int size : {1, 2048, 16384})
    for (const int tokens : {1, 16, 17, 60}) {
      const Tensor table = Tensor::random(DType::kBfloat16, {kVocabulary, size}, random);
      Tensor all(DType::kInt32, {kSteps, tokens});
      for (int64_t i = 0; i < all.size(); ++i) all.set(i, random.integer(0, kVocabulary - 1));
      std::vector<int32_t> steps(kSteps);
      std::iota(steps.begin(), steps.end(), 0);
      const GpuTensor table_gpu(table), all_gpu(all), steps_gpu(Tensor::ints(steps)), ids(DType::kInt32, {1, tokens}),
          out(DType::kBfloat16, {kSteps * tokens, size});
      const TensorView flat_ids(ids.view().data, DType::kInt32, {tokens});
      for (const int step : steps) {
        const TensorView row(steps_gpu.view().as<int32_t>() + step, DType::kInt32, {1});
        const TensorView to(out.view().as<uint16_t>() + int64_t{step} * tokens * size, DType::kBfloat16,
                            {tokens, size});
        cuda::gather_rows({all_gpu, row, ids}, gpu());
        cuda::embedding({flat_ids, table_gpu, to}, gpu());
      }
      const Tensor got = out.host();
      for (int64_t t = 0; t < kSteps * tokens; ++t) {
        const auto id = static_cast<int64_t>(all[t]);
        ASSERT_EQ(got.bits(t, t + 1), table.bits(id, id + 1)) << size << ", row " << t << " of " << tokens;
      }
    }
}

TEST_F(EmbeddingGpu, PutsVirtualRowsInTheirPlaces) {
  Random random;
  for (const int size : {7, 768, 4096}) {
    const Tensor table = Tensor::random(DType::kBfloat16, {50, size}, random);
    const Tensor rows = Tensor::random(DType::kBfloat16, {2, size}, random);
    const GpuTensor table_gpu(table), rows_gpu(rows), ids(Tensor::ints({49, 1 << 30, 0, 50})),
        places(Tensor::ints({1, 3})), out(DType::kBfloat16, {4, size});
    cuda::embedding({ids, table_gpu, out, places, rows_gpu}, gpu());
    const Tensor got = out.host();
    EXPECT_EQ(got.bits(0, 1), table.bits(49, 50));
    EXPECT_EQ(got.bits(1, 2), rows.bits(0, 1));
    EXPECT_EQ(got.bits(2, 3), table.bits(0, 1));
    EXPECT_EQ(got.bits(3, 4), rows.bits(1, 2));
  }
}

TEST_F(EmbeddingGpu, TakesTheNearestRowForAnIdOutside) {
  Random random;
  const Tensor table = Tensor::random(DType::kBfloat16, {5, 64}, random);
  const GpuTensor table_gpu(table), ids(Tensor::ints({-1, 5, 1 << 30, 2})), out(DType::kBfloat16, {4, 64});
  cuda::embedding({ids, table_gpu, out}, gpu());
  const Tensor got = out.host();
  const int want[] = {0, 4, 4, 2};
  for (int t = 0; t < 4; ++t) EXPECT_EQ(got.bits(t, t + 1), table.bits(want[t], want[t] + 1)) << t;
}

TEST_F(EmbeddingGpu, GathersRowsOfAnyType) {
  Random random;
  for (const DType dtype : {DType::kFloat32, DType::kBfloat16, DType::kInt32, DType::kInt64, DType::kUInt8})
    for (const int size : {1, 13, 32, 1000}) {
      Tensor in(dtype, {40, size});
      for (size_t i = 0; i < in.view().bytes(); ++i)
        in.view().as<unsigned char>()[i] = static_cast<unsigned char>(random.integer(0, 255));
      const std::vector<int32_t> rows = random_rows(17, 40, random);
      const GpuTensor in_gpu(in), rows_gpu(Tensor::ints(rows)), out(dtype, {17, size});
      cuda::gather_rows({in_gpu, rows_gpu, out}, gpu());
      const Tensor got = out.host();
      for (int i = 0; i < 17; ++i) ASSERT_EQ(got.bits(i, i + 1), in.bits(rows[i], rows[i] + 1)) << name_of(dtype);
    }
}

TEST_F(EmbeddingGpu, NamesWhatDoesNotFit) {
  const Tensor ids(DType::kInt32, {3}), table(DType::kFloat16, {9, 8}), out(DType::kBfloat16, {3, 8});
  const Tensor none(DType::kBfloat16, {0, 8});
  EXPECT_EQ(error_of(ErrorCode::kUnsupported, [&] { cuda::embedding({ids, table, out}, gpu()); }),
            "embedding: table is [9, 8] float16, wanted [V, H] bfloat16");
  EXPECT_EQ(error_of(ErrorCode::kInvalidArgument, [&] { cuda::gather_rows({none, ids, out}, gpu()); }),
            "gather_rows: there are 3 rows to take from [0, 8] bfloat16");
}

}  // namespace
}  // namespace inflight::test
