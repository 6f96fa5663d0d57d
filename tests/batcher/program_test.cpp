#include <gtest/gtest.h>

#include "inflight_batcher/engine/program_builder.h"
#include "inflight_batcher/engine/weights.h"
#include "kernels/cpu/cpu.h"
#include "tests/batcher/tiny_engine.h"

namespace inflight {
namespace {

using testing::expect_error;
using testing::json;
using testing::op;
using testing::TinyNetwork;

struct ProgramTest : ::testing::Test {
  ProgramTest() { testing::write_safetensors(folder.path() / "model.safetensors", TinyNetwork().tensors()); }

  Program build(const Topology& topology = {}, int stage = 0) {
    testing::write_file(folder.path() / "plan.json", document.dump());
    plan = read_plan(folder.path());
    weights = std::make_unique<WeightStore>(plan, 0, 1);
    return build_program(plan, cpu::op_table(), *weights, group.at(0), topology, stage, 64, 8);
  }

  /// As a device would that has linear_gated and 16-bit activations.
  Program build_fused() {
    testing::write_file(folder.path() / "plan.json", document.dump());
    plan = read_plan(folder.path());
    weights = std::make_unique<WeightStore>(plan, 0, 1);
    OpTable table = cpu::op_table();
    table.linear_gated = [](const LinearGatedArgs&, DeviceContext&) {};
    return build_program(plan, table, *weights, group.at(0), {}, 0, 64, 8, DType::kBfloat16);
  }

  void expect_refused(const std::vector<std::string>& parts, ErrorCode code = ErrorCode::kInvalidArgument) {
    expect_error(code, parts, [&] { build(); });
  }

  json& prologue() { return document["blocks"]["prologue"]; }
  json& layer_op(int index) { return document["blocks"]["layers"]["ops"][index]; }
  json& epilogue() { return document["blocks"]["epilogue"]; }

  testing::TemporaryFolder folder;
  json document = TinyNetwork().plan();
  Plan plan;
  ThreadGroup group{1};
  std::unique_ptr<WeightStore> weights;
};

constexpr int kNorm = 0, kQkv = 1, kRope = 2, kAttention = 3, kReduce = 5, kAdd = 6, kActivation = 8;

TEST_F(ProgramTest, BindsEveryOpAndRunsWhatPrecedesTheLogitsRowsOnce) {
  const Program program = build();
  EXPECT_EQ(program.body.size(), 1u + 2 * 12 + 1);  // the epilogue's norm works on tokens
  EXPECT_EQ(program.epilogue.size(), 3u);
  EXPECT_EQ(program.slots[program.logits].width, TinyNetwork::kVocabulary);
  EXPECT_GT(program.arena_bytes, 0u);
}

TEST_F(ProgramTest, StagesHandTheCarryOn) {
  const Program first = build({1, 2}, 0), last = build({1, 2}, 1);
  EXPECT_EQ(first.carry_out.size(), 1u);
  EXPECT_TRUE(first.carry_in.empty());
  EXPECT_EQ(first.logits, -1);
  EXPECT_EQ(last.carry_in.size(), 1u);
  EXPECT_TRUE(last.carry_out.empty());
  EXPECT_EQ(last.slots[last.carry_in[0]].width, TinyNetwork::kWidth);
}

TEST_F(ProgramTest, MoreStagesThanUnitsAreRefused) {
  expect_error(ErrorCode::kInvalidArgument, {"2 repeating units", "3 pipeline stages"}, [&] { build({1, 3}, 0); });
}

TEST_F(ProgramTest, AnUnknownOpIsNamedWithThoseThatAreKnown) {
  layer_op(kActivation)["op"] = "softplus";
  expect_refused({"layer 0", "'softplus'", "-> active", "this build knows", "gated_activation"},
                 ErrorCode::kUnsupported);
}

TEST_F(ProgramTest, MissingOperandsAreNamed) {
  for (const auto& [kind, name, word] :
       std::vector<std::array<std::string, 3>>{{"inputs", "x", "input"},
                                               {"weights", "weight", "weight"},
                                               {"outputs", "out", "output"},
                                               {"attributes", "epsilon", "attribute"}}) {
    const json saved = layer_op(kNorm);
    layer_op(kNorm)[kind].erase(name);
    expect_refused({"layer 0", "'rms_norm'", word + " '" + name + "'", "missing"});
    layer_op(kNorm) = saved;
  }
}

TEST_F(ProgramTest, OperandsThatNobodyAskedForAreNamed) {
  for (const auto& [kind, value, word] :
       std::vector<std::tuple<std::string, json, std::string>>{{"inputs", "x", "input"},
                                                               {"weights", "norm", "weight"},
                                                               {"outputs", "spare", "output"},
                                                               {"attributes", 1, "attribute"},
                                                               {"attributes", "text", "attribute"},
                                                               {"attributes", json{1, 2}, "attribute"}}) {
    const json saved = layer_op(kActivation);
    layer_op(kActivation)[kind]["extra"] = value;
    expect_refused({"layer 0", "'activation'", "unknown " + word + " 'extra'"});
    layer_op(kActivation) = saved;
  }
}

TEST_F(ProgramTest, AttributesOfTheWrongKindAreRefused) {
  layer_op(kActivation)["attributes"]["activation"] = "swish";
  expect_refused({"'swish'", "silu, gelu, gelu_tanh, relu"});
  layer_op(kActivation)["attributes"]["activation"] = 3;
  expect_refused({"attribute 'activation' (a text) is missing"});
  layer_op(kActivation)["attributes"]["activation"] = "relu";
  for (const json& value : {json(1.5), json(-1), json(1e12)}) {
    layer_op(kAttention)["attributes"]["window"] = value;
    expect_refused({"'attention'", "attribute 'window'", "whole number"});
  }
}

TEST_F(ProgramTest, ATensorIsNotReadBeforeItIsDefined) {
  layer_op(kNorm)["inputs"]["x"] = "middle";
  expect_refused({"layer 0", "'rms_norm'", "tensor 'middle'", "no op before it"});
}

TEST_F(ProgramTest, ATensorIsNotDefinedTwice) {
  layer_op(kActivation)["outputs"]["out"] = "middle";
  expect_refused({"'activation'", "'middle' a second time"});
}

TEST_F(ProgramTest, ATensorOverwrittenInPlaceIsGone) {
  layer_op(kAdd)["inputs"]["b"] = "out.partial";
  expect_refused({"'add'", "'out.partial'", "'all_reduce'", "overwritten in place"});
}

TEST_F(ProgramTest, OneBlockDoesNotSeeTheTensorsOfAnother) {
  prologue().push_back(op("activation", {{"x", "x"}}, {}, {{"out", "early"}}, {{"activation", "relu"}}));
  layer_op(kAdd)["inputs"]["b"] = "early";
  expect_refused({"layer 0", "'early'", "no op before it"});
  layer_op(kAdd)["inputs"]["b"] = "out";
  prologue().back()["outputs"]["out"] = "middle";  // but names may be the same
  build();
  epilogue()[0]["inputs"]["x"] = "middle";
  expect_refused({"epilogue", "'middle'"});
}

TEST_F(ProgramTest, TheCarryAndTheLogitsMustBeDefined) {
  document["blocks"]["layers"]["carry"] = testing::carry({{"x", "nowhere"}});
  expect_refused({"carries", "'nowhere'"});
  document["blocks"]["layers"]["carry"] = testing::carry({{"nowhere", "x.next"}});
  expect_refused({"'nowhere'"});
  document["blocks"]["layers"]["carry"] = testing::carry({{"x", "x.next"}});
  epilogue().erase(3);
  expect_refused({"epilogue must define", "'logits'"});
}

TEST_F(ProgramTest, WidthsThatDoNotFitAreNamed) {
  layer_op(kQkv)["weights"]["weight"] = "layers.{layer}.down";
  expect_refused({"'linear'", "[16, 20] float32", "width 16"});
  layer_op(kQkv)["weights"]["weight"] = "layers.{layer}.up";
  expect_refused({"'rope_kv_write'", "qkv has width 20", "wanted 32"});
  layer_op(kQkv)["weights"]["weight"] = "layers.{layer}.qkv";
  layer_op(kAdd)["inputs"]["b"] = "qkv";
  expect_refused({"'add'", "16 and 32"});
  layer_op(kAdd)["inputs"]["b"] = "out";
  layer_op(kQkv)["weights"]["bias"] = "norm";
  expect_refused({"'linear'", "bias is [16] float32", "[32, 16] float32"});
  layer_op(kQkv)["weights"].erase("bias");
  epilogue()[2]["weights"]["weight"] = "layers.0.up";
  expect_refused({"logits have width 20", "vocabulary has 23"});
}

TEST_F(ProgramTest, NormsHoldTheirOperandsToOneWidth) {
  epilogue()[0]["inputs"]["residual"] = "x";
  epilogue()[0]["outputs"]["residual"] = "sum";
  expect_refused({"'rms_norm'", "residual", "another tensor"});
  layer_op(10)["op"] = "rms_norm";  // the second all_reduce, on width 16; the residual has width 20
  layer_op(10) = op("rms_norm", {{"x", "down.partial"}, {"residual", "active"}}, {{"weight", "norm"}},
                    {{"out", "down"}, {"residual", "sum"}}, {{"epsilon", 1e-5}});
  expect_refused({"'rms_norm'", "residual has width 20", "width 16"});
}

TEST_F(ProgramTest, HeadsMustFitTheCacheAndOneAnother) {
  layer_op(kAttention)["attributes"]["num_kv_heads"] = 3;
  expect_refused({"'attention'", "4 query heads", "3 KV heads"});
  layer_op(kAttention)["attributes"]["num_kv_heads"] = 4;
  expect_refused({"'attention'", "kv_cache has 2 heads of 4", "4 of 4"});
  layer_op(kAttention)["attributes"]["num_kv_heads"] = 2;
  layer_op(kAttention)["attributes"]["window"] = 5;
  expect_refused({"'attention'", "window is 5", "kv_cache has 0"});
  layer_op(kAttention)["attributes"]["window"] = 0;
  layer_op(kAttention)["attributes"]["layer"] = 1;
  expect_refused({"'attention'", "layer 1 of a unit of 1"});
  layer_op(kAttention)["attributes"]["layer"] = 0;
  layer_op(kAttention)["attributes"]["alibi_slopes"] = {0.5, 0.25};
  expect_refused({"'attention'", "'alibi_slopes' has 2 numbers, wanted 4"});
}

TEST_F(ProgramTest, OnlyTheLayersHaveAKvCache) {
  prologue().push_back(op("attention", {{"q", "x"}}, {}, {{"out", "early"}}, layer_op(kAttention)["attributes"]));
  expect_refused({"prologue", "'attention'", "only an op of the layers block"});
}

TEST_F(ProgramTest, OnlyTheEpilogueWorksOnLogitsRows) {
  prologue().push_back(op("gather_rows", {{"x", "x"}, {"rows", "logits_rows"}}, {}, {{"out", "early"}}));
  expect_refused({"prologue", "'gather_rows'", "only the epilogue"});
}

TEST_F(ProgramTest, NothingIsOverwrittenBehindTheGathering) {
  epilogue().push_back(op("all_reduce", {{"x", "normed"}}, {}, {{"out", "late"}}));
  expect_refused({"epilogue", "'all_reduce'", "'normed'", "in place"}, ErrorCode::kUnsupported);
}

TEST_F(ProgramTest, GraphInputsAreNamed) {
  prologue()[0]["inputs"]["ids"] = "words";
  expect_refused({"prologue", "'embedding'", "'words'", "token_ids, positions, logits_rows"});
  prologue()[0]["inputs"]["ids"] = "logits_rows";
  expect_refused({"prologue", "'embedding'", "token_ids or positions"});
  prologue()[0]["inputs"]["ids"] = "token_ids";
  epilogue()[1]["inputs"]["rows"] = "positions";
  expect_refused({"epilogue", "'gather_rows'", "logits_rows"});
}

TEST_F(ProgramTest, UnknownWeightsAreNamedWithTheirLayer) {
  layer_op(kQkv)["weights"]["weight"] = "layers.{layer+1}.qkv";  // the last layer has none behind it
  expect_refused({"layer 1", "'linear'", "no weight 'layers.2.qkv'"});
}

TEST_F(ProgramTest, MarkedOutputsMustBeTokensThatAreStillThere) {
  document["outputs"] = testing::marked_output("mark", "out.partial", "layers");
  expect_refused({"marked output", "'out.partial'", "overwrites in place"});
  document["outputs"] = testing::marked_output("mark", "rows", "epilogue");
  expect_refused({"'mark'", "row per token"}, ErrorCode::kUnsupported);
  document["outputs"] = testing::marked_output("mark", "active", "layers");
  const Program program = build();
  ASSERT_EQ(program.captures.size(), 2u);
  EXPECT_EQ(program.captures[1].layer, 1);
}

TEST_F(ProgramTest, LogitsAreFloat32WhateverTheActivationsAre) {
  const Program program = build_fused();
  for (size_t i = 0; i < program.slots.size(); ++i)
    EXPECT_EQ(program.slots[i].dtype, static_cast<int>(i) == program.logits ? DType::kFloat32 : DType::kBfloat16) << i;
  epilogue()[3] = op("activation", {{"x", "logits.shard"}}, {}, {{"out", "logits"}}, {{"activation", "relu"}});
  build();
  expect_error(ErrorCode::kUnsupported, {"logits are bfloat16", "float32"}, [&] { build_fused(); });
}

TEST_F(ProgramTest, TheShapesOfMatrixProductsAreNoted) {
  const Program program = build_fused();
  const auto& linears = program.linears;
  EXPECT_EQ(linears.size(), 5u);  // of two like layers and the head
  EXPECT_TRUE(linears.contains({TinyNetwork::kVocabulary, TinyNetwork::kWidth, Rows::kLogits, DType::kFloat32}));
  EXPECT_TRUE(linears.contains({TinyNetwork::kInner, TinyNetwork::kWidth, Rows::kTokens, DType::kBfloat16}));
}

struct GatedProgramTest : ProgramTest {
  GatedProgramTest() {
    prologue().push_back(op("linear", {{"x", "x"}}, {{"weight", "layers.0.up"}}, {{"out", "pair"}}));
    prologue().push_back(op("gated_activation", {{"x", "pair"}}, {}, {{"out", "gated"}}, {{"activation", "silu"}}));
  }
  static bool is_fused(const Program& program) {
    return program.body[1].label.find("'linear_gated' -> gated") != std::string::npos;
  }
};

TEST_F(GatedProgramTest, APairOfOpsBecomesOneWhereTheDeviceHasIt) {
  const size_t apart = build().body.size();
  const Program program = build_fused();
  EXPECT_TRUE(is_fused(program));
  EXPECT_EQ(program.body.size(), apart - 1);
  EXPECT_TRUE(program.linears.contains(
      {TinyNetwork::kInner, TinyNetwork::kWidth, Rows::kTokens, DType::kBfloat16, false, true}));
}

TEST_F(GatedProgramTest, APairThatSomebodyElseReadsStaysApart) {
  const json saved = document;
  prologue().push_back(op("activation", {{"x", "pair"}}, {}, {{"out", "late"}}, {{"activation", "relu"}}));
  EXPECT_FALSE(is_fused(build_fused()));
  document = saved;
  document["outputs"] = testing::marked_output("mark", "pair", "prologue");
  EXPECT_FALSE(is_fused(build_fused()));
  document["outputs"] = testing::marked_output("mark", "gated", "prologue");
  EXPECT_TRUE(is_fused(build_fused()));
  document = saved;
  prologue()[1]["weights"]["bias"] = "norm";
  expect_error(ErrorCode::kInvalidArgument, {"'linear' -> pair", "bias"}, [&] { build_fused(); });
}

TEST(RegisterOp, ANameIsTakenOnce) {
  expect_error(ErrorCode::kAlreadyExists, {"'linear'"}, [] { register_op("linear", nullptr); });
}

}  // namespace
}  // namespace inflight
