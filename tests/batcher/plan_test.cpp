#include "inflight_batcher/engine/plan.h"

#include <gtest/gtest.h>

#include "inflight_batcher/engine/plan_schema_check.h"
#include "tests/batcher/tiny_engine.h"

namespace inflight {
namespace {

using testing::expect_error;
using testing::json;

struct PlanTest : ::testing::Test {
  Plan read(const std::string& text) {
    testing::write_file(folder.path() / "plan.json", text);
    return read_plan(folder.path());
  }

  /// Reads the tiny plan with `value` at `place`.
  Plan read_with(const std::string& place, const json& value) {
    json changed = document;
    changed[json::json_pointer(place)] = value;
    return read(changed.dump());
  }

  testing::TemporaryFolder folder;
  json document = testing::TinyNetwork().plan();
};

TEST_F(PlanTest, ReadsWhatTheDocumentSays) {
  const Plan plan = read(document.dump());
  EXPECT_EQ(plan.family, "tiny");
  EXPECT_EQ(plan.vocabulary_size, 23);
  EXPECT_EQ(plan.num_layers, 2);
  EXPECT_EQ(plan.repeat, 2);
  EXPECT_EQ(plan.checkpoint, folder.path() / ".");
  EXPECT_EQ(plan.carry, (std::vector<std::pair<std::string, std::string>>{{"x", "x.next"}}));
  EXPECT_EQ(plan.unit.size(), 12u);
  const PlanOp& rope = plan.unit[2];
  EXPECT_EQ(rope.op, "rope_kv_write");
  EXPECT_EQ(rope.inputs.at("qkv"), "qkv");
  EXPECT_EQ(rope.numbers.at("num_heads"), 4);
  EXPECT_EQ(rope.numbers.at("interleaved"), 0);
  EXPECT_EQ(rope.sequences.at("inverse_frequencies"), (std::vector<double>{1.0, 0.1}));
  EXPECT_EQ(plan.unit[8].words.at("activation"), "relu");
  const PlanWeight& qkv = plan.weights.at("layers.1.qkv");
  EXPECT_EQ(qkv.shard, Shard::kAxis0);
  EXPECT_EQ(qkv.shape, (std::vector<int64_t>{32, 16}));
  ASSERT_EQ(qkv.sources.size(), 3u);
  EXPECT_EQ(qkv.sources[1].tensor, "layers.1.k");
  EXPECT_EQ(qkv.sources[1].units, 2);
  EXPECT_EQ(plan.kv_layers[1].head_size, 4);
}

TEST_F(PlanTest, ReadsSlicesTranspositionsAndOutputs) {
  document["weights"]["norm"]["sources"][0].update(
      json{{"slice", {{"axis", 1}, {"start", 3}, {"stop", 7}}}, {"transpose", true}});
  document["weights"]["norm"]["dtype"] = "bfloat16";
  document["outputs"] = testing::marked_output("hidden", "x.next", "layers");
  const Plan plan = read(document.dump());
  const PlanSource& source = plan.weights.at("norm").sources[0];
  EXPECT_TRUE(source.transpose);
  EXPECT_EQ(source.slice->axis, 1);
  EXPECT_EQ(source.slice->start, 3);
  EXPECT_EQ(source.slice->stop, 7);
  EXPECT_EQ(plan.weights.at("norm").dtype, DType::kBfloat16);
  EXPECT_EQ(plan.outputs[0].tensor, "x.next");
}

TEST_F(PlanTest, MissingFileIsNotFoundAndSaysHowToMakeOne) {
  expect_error(ErrorCode::kNotFound, {(folder.path() / "plan.json").string(), "inflight build"},
               [&] { read_plan(folder.path()); });
}

TEST_F(PlanTest, OtherVersionIsUnsupportedAndNamesBoth) {
  expect_error(ErrorCode::kUnsupported, {"plan.json", "version is 2", "reads version 1"},
               [&] { read_with("/version", 2); });
}

TEST_F(PlanTest, TextThatIsNoJsonIsRefused) {
  for (const std::string& text : {std::string(), std::string("{"), std::string("\0\xff\x01", 3), std::string("[1,2"),
                                  std::string(100000, '['), document.dump() + "x"})
    expect_error(ErrorCode::kInvalidArgument, {"plan.json", "not JSON"}, [&] { read(text); });
  for (const char* text : {"null", "5", "\"plan\"", "[]"})
    expect_error(ErrorCode::kInvalidArgument, {"plan.json"}, [&] { read(text); });
}

TEST_F(PlanTest, EveryMissingKeyIsNamed) {
  for (const auto& [place, key] :
       std::vector<std::pair<std::string, std::string>>{{"", "network"},
                                                        {"", "kv_cache"},
                                                        {"/network", "eos_ids"},
                                                        {"/blocks", "epilogue"},
                                                        {"/blocks/layers", "carry"},
                                                        {"/blocks/prologue/0", "weights"},
                                                        {"/weights/norm", "shard"},
                                                        {"/weights/norm/sources/0", "tensor"}}) {
    json changed = document;
    changed[json::json_pointer(place)].erase(key);
    expect_error(ErrorCode::kInvalidArgument, {"plan.json", "'" + key + "'"}, [&] { read(changed.dump()); });
  }
}

TEST_F(PlanTest, WrongValuesAreRefusedWithTheirPlace) {
  const std::vector<std::pair<std::string, json>> changes = {
      {"/network/vocabulary_size", "many"},     {"/network/hidden_size", 0},
      {"/network/num_layers", 3000000000},      {"/network/max_positions", -1},
      {"/weights/norm/dtype", "int8"},          {"/weights/norm/shape", json::array()},
      {"/weights/norm/sources", json::array()}, {"/weights/norm/shard", "axis2"},
      {"/blocks/layers/repeat", 1.5},           {"/kv_cache/0/window", -2}};
  for (const auto& [place, value] : changes) {
    const std::string last = place.substr(place.rfind('/') + 1);
    expect_error(ErrorCode::kInvalidArgument, {"plan.json", last}, [&] { read_with(place, value); });
  }
}

TEST_F(PlanTest, UnknownKeysAreRefused) {
  for (const std::string place : {"/sharding", "/network/heads", "/weights/norm/scale", "/blocks/layers/times"})
    expect_error(ErrorCode::kInvalidArgument, {"plan.json"}, [&] { read_with(place, 1); });
}

TEST_F(PlanTest, ContradictionsNameBothNumbers) {
  expect_error(ErrorCode::kInvalidArgument, {"3 units of 1", "2 layers"},
               [&] { read_with("/blocks/layers/repeat", 3); });
  document["kv_cache"].erase(0);
  expect_error(ErrorCode::kInvalidArgument, {"1 layers", "network has 2"}, [&] { read(document.dump()); });
}

TEST_F(PlanTest, SlicesThatAreEmptyOrBackwardsAreRefused) {
  for (const auto& [start, stop] : std::vector<std::pair<json, json>>{{4, 4}, {5, 2}, {18446744073709551615u, 4}})
    expect_error(ErrorCode::kInvalidArgument, {"plan.json"}, [&, start = start, stop = stop] {
      read_with("/weights/norm/sources/0/slice", {{"axis", 0}, {"start", start}, {"stop", stop}});
    });
}

TEST_F(PlanTest, KvHeadsThatOverflowTheirProductAreRefused) {
  expect_error(ErrorCode::kInvalidArgument, {"1073741824 heads of 1073741824"},
               [&] { read_with("/kv_cache/0", {{"kv_heads", 1 << 30}, {"head_size", 1 << 30}, {"window", 0}}); });
}

TEST_F(PlanTest, AttributesOfOtherKindsNameOpAndAttribute) {
  for (const json& value : {json(nullptr), json{{"a", 1}}, json{1, "two"}})
    expect_error(ErrorCode::kInvalidArgument, {"'epsilon'", "'rms_norm'"},
                 [&] { read_with("/blocks/epilogue/0/attributes/epsilon", value); });
}

TEST(SchemaCheck, AcceptsTheTinyPlanAndNamesWhatIsWrong) {
  json document = testing::TinyNetwork().plan();
  check_plan_schema(document);
  document["blocks"]["layers"]["ops"][3]["inputs"]["q"] = 7;
  expect_error(ErrorCode::kInvalidArgument, {"[blocks]", "[layers]", "[ops]", "[3]", "[inputs]", "[q]"},
               [&] { check_plan_schema(document); });
}

TEST(SubstituteLayer, CountsFromTheUnitsFirstLayer) {
  EXPECT_EQ(substitute_layer("layers.{layer}.norm", 4), "layers.4.norm");
  EXPECT_EQ(substitute_layer("norm.{layer+1}", 4), "norm.5");
  EXPECT_EQ(substitute_layer("{layer+12}", 30), "42");
  EXPECT_EQ(substitute_layer("head.weight", 4), "head.weight");
}

TEST(SubstituteLayer, RefusesWhatItDoesNotUnderstand) {
  for (const std::string name : {"a{layer-1}", "a{layer+}", "a{layer+x}", "a{layers}", "a{layer+123456}"})
    expect_error(ErrorCode::kInvalidArgument, {name, "{layer+K}"}, [&] { substitute_layer(name, 0); });
  expect_error(ErrorCode::kInvalidArgument, {"a{layer", "unclosed"}, [] { substitute_layer("a{layer", 0); });
}

}  // namespace
}  // namespace inflight
