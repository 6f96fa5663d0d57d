#include "tests/kernels/harness.h"

namespace inflight::test {
namespace {

TEST(Embedding, ConvertsTheRowsAsked) {
  Random random;
  for (const DType dtype : kRealTypes)
    for (const int h : {1, 7, 64, 1030}) {
      const Tensor table = Tensor::random(dtype, {50, h}, random);
      const Tensor ids = Tensor::ints({49, 0, 7, 7, random.integer(0, 49)});
      Tensor out(DType::kFloat32, {5, h});
      ops().embedding({ids, table, out}, context());
      for (int i = 0; i < 5 * h; ++i) ASSERT_EQ(out[i], table[static_cast<int64_t>(ids[i / h]) * h + i % h]);
      EXPECT_TRUE(out.guard_intact());
    }
}

TEST(Embedding, PutsVirtualRowsInTheirPlaces) {
  Random random;
  const Tensor table = Tensor::random(DType::kBfloat16, {50, 70}, random);
  const Tensor rows = Tensor::random(DType::kFloat32, {2, 70}, random);
  const Tensor ids = Tensor::ints({49, 1 << 30, 0, 50}), places = Tensor::ints({1, 3});
  Tensor out(DType::kFloat32, {4, 70});
  ops().embedding({ids, table, out, places, rows}, context());
  for (int i = 0; i < 70; ++i) {
    EXPECT_EQ(out[i], table[49 * 70 + i]);
    EXPECT_EQ(out[70 + i], rows[i]);
    EXPECT_EQ(out[2 * 70 + i], table[i]);
    EXPECT_EQ(out[3 * 70 + i], rows[70 + i]);
  }
  const Tensor others = Tensor::ints({1, 2});
  EXPECT_EQ(error_of(ErrorCode::kInternal, [&] { ops().embedding({ids, table, out, others, rows}, context()); }),
            "embedding: id 50 at 3 is outside [0, 50)");
}

// Every number of each 16-bit format, as a table of one column, in a whole vector's path and in a tail's.
TEST(Embedding, DecodesEveryNumber) {
  for (const DType dtype : {DType::kFloat16, DType::kBfloat16})
    for (const int width : {1, 32}) {
      Tensor table(dtype, {65536 / width, width}), out(DType::kFloat32, {65536 / width, width});
      std::vector<int32_t> ids(65536 / width);
      std::iota(ids.begin(), ids.end(), 0);
      for (int i = 0; i < 65536; ++i) table.view().as<uint16_t>()[i] = static_cast<uint16_t>(i);
      ops().embedding({Tensor::ints(ids), table, out}, context());
      for (int i = 0; i < 65536; ++i) {
        if (std::isnan(table[i])) {
          ASSERT_TRUE(std::isnan(out[i])) << i;
        } else {
          ASSERT_EQ(out[i], table[i]) << i;
        }
      }
    }
}

TEST(Embedding, RefusesIdsOutsideTheTable) {
  const Tensor table(DType::kFloat32, {50, 4}), out(DType::kFloat32, {2, 4});
  for (const int id : {-1, 50})
    EXPECT_EQ(error_of(ErrorCode::kInternal, [&] { ops().embedding({Tensor::ints({3, id}), table, out}, context()); }),
              concat("embedding: id ", id, " at 1 is outside [0, 50)"));
}

TEST(GatherRows, CopiesRows) {
  Random random;
  const Tensor in = Tensor::random(DType::kFloat32, {9, 33}, random);
  const Tensor rows = Tensor::ints({0, 4, 8});
  Tensor out(DType::kFloat32, {3, 33});
  ops().gather_rows({in, rows, out}, context());
  EXPECT_EQ(out.bits(), in.bits(0, 1) + in.bits(4, 5) + in.bits(8, 9));
  error_of(ErrorCode::kInternal, [&] { ops().gather_rows({in, Tensor::ints({0, 1, 9}), out}, context()); });
  const Tensor half(DType::kFloat16, {3, 33});
  EXPECT_EQ(error_of(ErrorCode::kUnsupported, [&] { ops().gather_rows({in, rows, half}, context()); }),
            "gather_rows: out is [3, 33] float16, wanted [L=3, H=33] float32");
}

}  // namespace
}  // namespace inflight::test
