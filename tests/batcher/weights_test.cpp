#include "inflight_batcher/engine/weights.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <numeric>

#include "inflight_batcher/engine/random_weights.h"
#include "tests/batcher/tiny_engine.h"

namespace inflight {
namespace {

using testing::expect_error;
using testing::StoredTensor;

using Floats = std::vector<float>;

StoredTensor counting(const std::vector<int64_t>& shape, float first = 0) {
  Floats values(shape[0] * (shape.size() == 2 ? shape[1] : 1));
  std::iota(values.begin(), values.end(), first);
  return {"F32", shape, testing::bytes_of(values)};
}

Floats values_of(const TensorView& view) { return Floats(view.as<float>(), view.as<float>() + view.elements()); }

struct WeightsTest : ::testing::Test {
  WeightsTest() { plan.checkpoint = folder.path(); }

  void store(const std::map<std::string, StoredTensor>& tensors) {
    testing::write_safetensors(folder.path() / "w.safetensors", tensors);
  }

  static PlanSource source(const std::string& tensor, int64_t units = 1) {
    PlanSource source{"w.safetensors", tensor};
    source.units = units;
    return source;
  }

  TensorView load(PlanWeight weight, int rank = 0, int size = 1) {
    plan.weights["w"] = std::move(weight);
    stores.push_back(std::make_unique<WeightStore>(plan, rank, size));
    return stores.back()->get("w");
  }

  void expect_refused(PlanWeight weight, ErrorCode code, const std::vector<std::string>& parts, int size = 1) {
    expect_error(code, parts, [&] { load(weight, 0, size); });
  }

  testing::TemporaryFolder folder;
  Plan plan;
  std::vector<std::unique_ptr<WeightStore>> stores;
};

// The mapping starts at a page, a copy does not lie in it: the place in the page tells them apart.
bool in_mapping(const TensorView& view, size_t offset_in_file) {
  return reinterpret_cast<uintptr_t>(view.data) % 4096 == offset_in_file % 4096;
}

TEST(UnitsOfRank, CoverEverythingOnceWhenThereAreEnough) {
  for (int64_t units : {4, 5, 7, 16})
    for (int size : {1, 2, 3, 4}) {
      int64_t next = 0;
      for (int rank = 0; rank < size; ++rank) {
        const auto [first, last] = units_of_rank(units, rank, size);
        EXPECT_EQ(first, next);
        EXPECT_GE(last - first, units / size);
        EXPECT_LE(last - first, (units + size - 1) / size);
        next = last;
      }
      EXPECT_EQ(next, units);
    }
}

TEST(UnitsOfRank, NeighboursShareOneWhenThereAreTooFew) {
  EXPECT_EQ(units_of_rank(2, 0, 4), (std::pair<int64_t, int64_t>{0, 1}));
  EXPECT_EQ(units_of_rank(2, 1, 4), (std::pair<int64_t, int64_t>{0, 1}));
  EXPECT_EQ(units_of_rank(2, 2, 4), (std::pair<int64_t, int64_t>{1, 2}));
  EXPECT_EQ(units_of_rank(2, 3, 4), (std::pair<int64_t, int64_t>{1, 2}));
}

TEST_F(WeightsTest, ReplicatedIsWholeOnEveryRank) {
  store({{"a", counting({2, 3})}});
  for (int rank : {0, 1}) {
    const TensorView view = load({DType::kFloat32, {2, 3}, Shard::kReplicated, {source("a")}}, rank, 2);
    EXPECT_EQ(describe(view), "[2, 3] float32");
    EXPECT_EQ(values_of(view), (Floats{0, 1, 2, 3, 4, 5}));
  }
}

TEST_F(WeightsTest, Axis0GivesEachRankItsRows) {
  store({{"a", counting({6, 2})}});
  const PlanWeight weight{DType::kFloat32, {6, 2}, Shard::kAxis0, {source("a", 3)}};  // three units of two rows
  EXPECT_EQ(values_of(load(weight, 0, 2)), (Floats{0, 1, 2, 3}));
  EXPECT_EQ(values_of(load(weight, 1, 2)), (Floats{4, 5, 6, 7, 8, 9, 10, 11}));
}

TEST_F(WeightsTest, Axis1GivesEachRankItsColumns) {
  store({{"a", counting({2, 4})}});
  const PlanWeight weight{DType::kFloat32, {2, 4}, Shard::kAxis1, {source("a", 4)}};
  const TensorView view = load(weight, 1, 2);
  EXPECT_EQ(describe(view), "[2, 2] float32");
  EXPECT_EQ(values_of(view), (Floats{2, 3, 6, 7}));
}

TEST_F(WeightsTest, FirstRankAloneHasIt) {
  store({{"a", counting({3})}});
  const PlanWeight weight{DType::kFloat32, {3}, Shard::kFirstRank, {source("a")}};
  EXPECT_EQ(values_of(load(weight, 0, 2)), (Floats{0, 1, 2}));
  EXPECT_FALSE(load(weight, 1, 2));
  EXPECT_EQ(stores.back()->bytes(), 0u);
}

TEST_F(WeightsTest, SourcesLieEndToEndAndAreShardedOneByOne) {
  store({{"q", counting({4, 2})}, {"k", counting({2, 2}, 100)}, {"v", counting({2, 2}, 200)}});
  const PlanWeight weight{DType::kFloat32, {8, 2}, Shard::kAxis0, {source("q", 4), source("k", 2), source("v", 2)}};
  EXPECT_EQ(values_of(load(weight)), (Floats{0, 1, 2, 3, 4, 5, 6, 7, 100, 101, 102, 103, 200, 201, 202, 203}));
  EXPECT_EQ(values_of(load(weight, 0, 2)), (Floats{0, 1, 2, 3, 100, 101, 200, 201}));
  EXPECT_EQ(values_of(load(weight, 1, 2)), (Floats{4, 5, 6, 7, 102, 103, 202, 203}));
}

TEST_F(WeightsTest, FewerUnitsThanRanksAreHeldByNeighbours) {
  store({{"k", counting({2, 2})}});
  const PlanWeight weight{DType::kFloat32, {2, 2}, Shard::kAxis0, {source("k", 2)}};
  for (int rank = 0; rank < 4; ++rank)
    EXPECT_EQ(values_of(load(weight, rank, 4)), rank < 2 ? (Floats{0, 1}) : (Floats{2, 3}));
}

TEST_F(WeightsTest, SliceComesBeforeTranspositionAndShard) {
  store({{"a", counting({3, 6})}});  // columns 2 to 5, transposed: [4, 3]
  PlanSource part = source("a", 2);
  part.slice = PlanSource::Slice{1, 2, 6};
  part.transpose = true;
  const PlanWeight rows{DType::kFloat32, {4, 3}, Shard::kAxis0, {part}};
  EXPECT_EQ(values_of(load(rows)), (Floats{2, 8, 14, 3, 9, 15, 4, 10, 16, 5, 11, 17}));
  EXPECT_EQ(values_of(load(rows, 1, 2)), (Floats{4, 10, 16, 5, 11, 17}));
  part.units = 3;
  const PlanWeight columns{DType::kFloat32, {4, 3}, Shard::kAxis1, {part}};
  EXPECT_EQ(values_of(load(columns, 1, 3)), (Floats{8, 9, 10, 11}));
}

TEST_F(WeightsTest, SlicedVectorsAreCutToo) {
  store({{"bias", counting({6})}});
  PlanSource part = source("bias", 2);
  part.slice = PlanSource::Slice{0, 2, 6};
  const PlanWeight weight{DType::kFloat32, {4}, Shard::kAxis0, {part}};
  EXPECT_EQ(values_of(load(weight)), (Floats{2, 3, 4, 5}));
  EXPECT_EQ(values_of(load(weight, 1, 2)), (Floats{4, 5}));
}

TEST_F(WeightsTest, LargeTransposedHalfFloatsKeepTheirPlaces) {
  const int64_t rows = 130, columns = 67;  // more than one tile each way, not whole tiles
  std::vector<uint16_t> stored(rows * columns);
  std::iota(stored.begin(), stored.end(), 0);
  store({{"a", {"BF16", {rows, columns}, testing::bytes_of(stored)}}});
  PlanSource part = source("a");
  part.transpose = true;
  const TensorView view = load({DType::kBfloat16, {columns, rows}, Shard::kReplicated, {part}});
  for (int64_t r = 0; r < columns; ++r)
    for (int64_t c = 0; c < rows; ++c) ASSERT_EQ(view.as<uint16_t>()[r * rows + c], stored[c * columns + r]);
}

TEST_F(WeightsTest, OneStoredTensorIsUsedWhereTheFileIsMapped) {
  const std::string header = R"({"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}       )";
  ASSERT_EQ(header.size() % 8, 0u);
  testing::write_file(folder.path() / "w.safetensors",
                      testing::safetensors_bytes(header, testing::bytes_of(Floats{0, 1, 2, 3})));
  const PlanWeight weight{DType::kFloat32, {2, 2}, Shard::kAxis0, {source("a", 2)}};
  EXPECT_TRUE(in_mapping(load(weight), 8 + header.size()));
  EXPECT_TRUE(in_mapping(load(weight, 1, 2), 8 + header.size() + 8));
}

TEST_F(WeightsTest, MisalignedDataIsCopiedToAnAlignedPlace) {
  const std::string header = R"({"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}})";
  ASSERT_NE((8 + header.size()) % 4, 0u);
  testing::write_file(folder.path() / "w.safetensors",
                      testing::safetensors_bytes(header, testing::bytes_of(Floats{0, 1, 2, 3})));
  const TensorView plain = load({DType::kFloat32, {2, 2}, Shard::kReplicated, {source("a")}});
  EXPECT_EQ(reinterpret_cast<uintptr_t>(plain.data) % alignof(float), 0u);
  EXPECT_EQ(values_of(plain), (Floats{0, 1, 2, 3}));
  PlanSource turned = source("a");
  turned.transpose = true;
  EXPECT_EQ(values_of(load({DType::kFloat32, {2, 2}, Shard::kReplicated, {turned}})), (Floats{0, 2, 1, 3}));
}

TEST_F(WeightsTest, AWeightIsLoadedOnceAndCounted) {
  store({{"a", counting({2, 3})}});
  plan.weights["w"] = {DType::kFloat32, {2, 3}, Shard::kReplicated, {source("a")}};
  WeightStore weights(plan, 0, 1);
  EXPECT_EQ(weights.get("w").data, weights.get("w").data);
  EXPECT_EQ(weights.bytes(), 24u);
}

float bfloat16_value(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

/// Rows [first, last) of a part as bfloat16.
Floats as_bfloat16(const WeightPart& part, int64_t first, int64_t last) {
  std::vector<uint16_t> bits((last - first) * part.columns());
  copy_rows(part, first, last, DType::kBfloat16, reinterpret_cast<std::byte*>(bits.data()));
  Floats values;
  for (const uint16_t value : bits) values.push_back(bfloat16_value(value));
  return values;
}

TEST_F(WeightsTest, PartsAreCopiedByRowsAndConverted) {
  store({{"a", counting({3, 6})}});
  PlanSource part = source("a");
  part.slice = PlanSource::Slice{1, 2, 6};
  plan.weights["w"] = {DType::kFloat32, {3, 4}, Shard::kReplicated, {part}};
  part.transpose = true;
  plan.weights["turned"] = {DType::kFloat32, {4, 3}, Shard::kReplicated, {part}};
  WeightStore weights(plan, 0, 1);
  const WeightStore::Layout layout = weights.layout("w");
  EXPECT_EQ(describe(layout.shape), "[3, 4] float32");
  EXPECT_EQ(as_bfloat16(layout.parts.at(0), 1, 3), (Floats{8, 9, 10, 11, 14, 15, 16, 17}));
  EXPECT_EQ(as_bfloat16(weights.layout("turned").parts.at(0), 1, 3), (Floats{3, 9, 15, 4, 10, 16}));
  EXPECT_EQ(weights.bytes(), 0u) << "a layout loads nothing";
}

TEST_F(WeightsTest, Float32IsRoundedToTheNearestBfloat16TiesToEven) {
  const float tie_down = std::bit_cast<float>(0x3f808000u), tie_up = std::bit_cast<float>(0x3f818000u),
              above = std::bit_cast<float>(0x3f808001u), below = std::bit_cast<float>(0x3f807fffu);
  const Floats values = {tie_down, tie_up, above, below, -above, INFINITY, 0.0f, -0.0f};
  store({{"a", {"F32", {8}, testing::bytes_of(values)}}, {"nan", {"F32", {1}, testing::bytes_of(Floats{NAN})}}});
  plan.weights["w"] = {DType::kFloat32, {8}, Shard::kReplicated, {source("a")}};
  plan.weights["nan"] = {DType::kFloat32, {1}, Shard::kReplicated, {source("nan")}};
  WeightStore weights(plan, 0, 1);
  const float up = bfloat16_value(0x3f81), two = bfloat16_value(0x3f82);
  const Floats rounded = as_bfloat16(weights.layout("w").parts.at(0), 0, 8);
  EXPECT_EQ(rounded, (Floats{1.0f, two, up, 1.0f, -up, INFINITY, 0.0f, -0.0f}));
  EXPECT_TRUE(std::signbit(rounded[7]));
  EXPECT_TRUE(std::isnan(as_bfloat16(weights.layout("nan").parts.at(0), 0, 1)[0]));
}

TEST_F(WeightsTest, Float16IsConvertedWithItsSmallestAndItsInfinities) {
  const std::vector<uint16_t> halves = {0x3c00, 0xc000, 0x7bff, 0x0001, 0x8400, 0x7c00, 0xfc00, 0x0000};
  store({{"a", {"F16", {8}, testing::bytes_of(halves)}}});
  plan.weights["w"] = {DType::kFloat16, {8}, Shard::kReplicated, {source("a")}};
  WeightStore weights(plan, 0, 1);
  EXPECT_EQ(as_bfloat16(weights.layout("w").parts.at(0), 0, 8),
            (Floats{1.0f, -2.0f, 65536.0f, 0x1p-24f, -0x1p-14f, INFINITY, -INFINITY, 0.0f}));
}

TEST_F(WeightsTest, TiedWeightsAreOne) {
  const PlanWeight embedding{DType::kFloat32, {4, 2}, Shard::kReplicated, {source("a")}};
  PlanWeight head{DType::kFloat32, {4, 2}, Shard::kAxis0, {source("a", 4)}};
  EXPECT_EQ(weight_identity(embedding, {4, 2}), weight_identity(head, {4, 2}));
  EXPECT_NE(weight_identity(embedding, {4, 2}), weight_identity(head, {2, 2}));
  head.sources[0].transpose = true;
  EXPECT_NE(weight_identity(embedding, {4, 2}), weight_identity(head, {4, 2}));
  head.sources[0].transpose = false;
  head.sources[0].slice = PlanSource::Slice{0, 0, 4};
  EXPECT_NE(weight_identity(embedding, {4, 2}), weight_identity(head, {4, 2}));
}

TEST_F(WeightsTest, RandomWeightsHaveThePlansShapesOnEveryRank) {
  plan.weights["qkv"] = {DType::kFloat32, {64, 8}, Shard::kAxis0, {source("q", 4), source("k", 2), source("v", 2)}};
  plan.weights["out"] = {DType::kBfloat16, {8, 32}, Shard::kAxis1, {source("o", 4)}};
  plan.weights["norm"] = {DType::kFloat32, {4096}, Shard::kReplicated, {source("n")}};
  plan.weights["out.bias"] = {DType::kFloat32, {4096}, Shard::kFirstRank, {source("b")}};
  RandomWeights first(plan, 0, 4), other(plan, 1, 4);
  EXPECT_EQ(describe(first.get("qkv")), "[24, 8] float32");  // one query head, and the KV heads shared by neighbours
  EXPECT_EQ(describe(first.get("out")), "[8, 8] bfloat16");
  EXPECT_FALSE(other.get("out.bias"));
  const auto mean = [](const TensorView& view) {
    const Floats values = values_of(view);
    return std::accumulate(values.begin(), values.end(), 0.0f) / static_cast<float>(values.size());
  };
  EXPECT_NEAR(mean(first.get("norm")), 1.0f, 0.002f);
  EXPECT_NEAR(mean(first.get("out.bias")), 0.0f, 0.002f);
  EXPECT_NE(values_of(first.get("qkv")), values_of(other.get("qkv")));
  EXPECT_EQ(values_of(first.get("norm")), values_of(RandomWeights(plan, 0, 4).get("norm")));
  const size_t bytes = first.bytes();
  first.get("qkv");
  EXPECT_EQ(first.bytes(), bytes);
}

TEST_F(WeightsTest, ErrorsNameWeightTensorAndBothSides) {
  store({{"a", counting({2, 3})}, {"vector", counting({6})}, {"wide", counting({2, 4})}});
  const auto weight = [](const std::vector<int64_t>& shape, const std::vector<PlanSource>& sources,
                         Shard shard = Shard::kReplicated) {
    return PlanWeight{DType::kFloat32, shape, shard, sources};
  };
  expect_refused({DType::kBfloat16, {2, 3}, Shard::kReplicated, {source("a")}}, ErrorCode::kInvalidArgument,
                 {"'w'", "'a'", "bfloat16", "float32"});
  expect_refused(weight({6}, {source("a")}), ErrorCode::kInvalidArgument, {"'w'", "'a'", "[6]", "[2, 3]"});
  expect_refused(weight({4, 3}, {source("a")}), ErrorCode::kInvalidArgument, {"'w'", "[4, 3]", "[2, 3]"});
  expect_refused(weight({4, 3}, {source("a", 2)}, Shard::kAxis0), ErrorCode::kInvalidArgument, {"[4, 3]", "[2, 3]"}, 2);
  expect_refused(weight({2, 5}, {source("a", 1)}, Shard::kAxis1), ErrorCode::kInvalidArgument, {"[2, 5]", "[2, 3]"}, 2);
  expect_refused(weight({4, 3}, {source("a"), source("wide")}), ErrorCode::kInvalidArgument,
                 {"'w'", "3 and 4 columns"});
  expect_refused(weight({2, 3}, {source("a", 4)}, Shard::kAxis0), ErrorCode::kInvalidArgument,
                 {"'w'", "2 of tensor 'a'", "4 units"}, 2);
  expect_refused(weight({2, 3}, {source("gone")}), ErrorCode::kNotFound, {"'gone'", "w.safetensors"});
  PlanSource far = source("a");
  far.slice = PlanSource::Slice{0, 1, 9};
  expect_refused(weight({8, 3}, {far}), ErrorCode::kInvalidArgument, {"'w'", "[1, 9)", "'a'", "which has 2"});
  PlanSource elsewhere = source("a");
  elsewhere.file = "other.safetensors";
  expect_refused(weight({2, 3}, {elsewhere}), ErrorCode::kNotFound, {"other.safetensors"});
  WeightStore weights(plan, 0, 1);
  expect_error(ErrorCode::kInvalidArgument, {"no weight 'unheard'"}, [&] { weights.get("unheard"); });
}

}  // namespace
}  // namespace inflight
