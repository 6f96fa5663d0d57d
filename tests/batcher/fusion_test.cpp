#include <gtest/gtest.h>

#include <future>

#include "inflight_batcher/engine/program_builder.h"
#include "inflight_batcher/engine/weights.h"
#include "kernels/cpu/cpu.h"
#include "tests/batcher/tiny_engine.h"

namespace inflight {
namespace {

using testing::json;
using testing::op;
using testing::TinyNetwork;

std::vector<std::string>& calls() {
  static std::vector<std::string> made;
  return made;
}

/// A device that has every fused op, and writes down what it is asked for.
OpTable recording_table() {
  OpTable table = cpu::op_table();
  table.embedding = [](const EmbeddingArgs&, DeviceContext&) {};
  table.rope_kv_write = [](const RopeKvWriteArgs&, const BatchView&, DeviceContext&) {};
  table.attention = [](const AttentionArgs&, const BatchView&, DeviceContext&) {};
  table.activation = [](const ActivationArgs&, DeviceContext&) {};
  table.gather_rows = [](const GatherRowsArgs&, DeviceContext&) {};
  table.linear = [](const LinearArgs&, DeviceContext&) { calls().push_back("linear"); };
  table.linear_add = [](const LinearAddArgs&, DeviceContext&) { calls().push_back("linear+add"); };
  table.rms_norm = [](const RmsNormArgs& args, DeviceContext&) {
    calls().push_back(args.residual ? "add+norm" : "norm");
  };
  return table;
}

/// The tiny network as the plan writer's passes leave a Llama: each norm adds the residual, and the last one of a unit
/// is the next unit's first.
struct FusionTest : ::testing::Test {
  FusionTest() {
    testing::write_safetensors(folder.path() / "model.safetensors", TinyNetwork().tensors());
    const auto norm = [](const char* x, const char* residual, const char* out, const char* sum) {
      return op("rms_norm", {{"x", x}, {"residual", residual}}, {{"weight", "norm"}}, {{"out", out}, {"residual", sum}},
                {{"epsilon", 1e-5}});
    };
    const json before = TinyNetwork().layer_ops();
    json ops = {before[1],
                before[2],
                before[3],
                before[4],
                before[5],
                norm("out", "x", "inner", "middle"),
                before[7],
                before[8],
                before[9],
                before[10],
                norm("down", "middle", "normed.next", "x.next")};
    ops[6]["inputs"]["x"] = "inner";
    document["blocks"]["layers"]["ops"] = ops;
    document["blocks"]["layers"]["carry"] = testing::carry({{"x", "x.next"}, {"normed", "normed.next"}});
    document["blocks"]["prologue"].push_back(
        op("rms_norm", {{"x", "x"}}, {{"weight", "norm"}}, {{"out", "normed"}}, {{"epsilon", 1e-5}}));
    document["blocks"]["epilogue"].erase(0);
  }

  Program build() { return build_ranks(1)[0]; }

  /// The programs of a tensor group's ranks, which are built together.
  std::vector<Program> build_ranks(int count) {
    testing::write_file(folder.path() / "plan.json", document.dump());
    plan = read_plan(folder.path());
    ThreadGroup group(count);
    weights.clear();
    for (int rank = 0; rank < count; ++rank) weights.push_back(std::make_unique<WeightStore>(plan, rank, count));
    std::vector<std::future<Program>> building;
    for (int rank = 0; rank < count; ++rank)
      building.push_back(std::async(std::launch::async, [&, rank] {
        return build_program(plan, table, *weights[rank], group.at(rank), {count, 1}, 0, 64, 8);
      }));
    std::vector<Program> programs;
    for (std::future<Program>& one : building) programs.push_back(one.get());
    return programs;
  }

  /// What the device is asked for in a step of so many tokens, up to the logits rows.
  std::vector<std::string> run(const Program& program, int64_t tokens) {
    calls().clear();
    BatchView batch;
    batch.token_ids = TensorView(nullptr, DType::kInt32, {tokens});
    batch.logits_rows = TensorView(nullptr, DType::kInt32, {1});
    std::vector<std::byte> arena(program.arena_bytes);
    std::vector<KvCacheView> cache(TinyNetwork().layers);
    const RunContext context{&table, &device, &batch, arena.data(), &program.slots, &cache};
    for (const BoundOp& bound : program.body) run_op(bound, context);
    return calls();
  }

  testing::TemporaryFolder folder;
  json document = TinyNetwork().plan();
  Plan plan;
  OpTable table = recording_table();
  cpu::CpuContext device{1};
  std::vector<std::unique_ptr<WeightStore>> weights;
};

TEST_F(FusionTest, ProductsAddToTheResidual) {
  const std::vector<std::string> want = {"norm",       "linear",     "linear+add", "norm",       "linear",
                                         "linear+add", "norm",       "linear",     "linear+add", "norm",
                                         "linear",     "linear+add", "norm"};
  EXPECT_EQ(run(build(), 1), want);
}

TEST_F(FusionTest, ShapesOfSumsAreNoted) {
  const Program program = build();
  LinearShape down{TinyNetwork::kWidth, TinyNetwork::kInner, Rows::kTokens, DType::kFloat32};
  EXPECT_FALSE(program.linears.contains(down));
  down.add = true;
  EXPECT_TRUE(program.linears.contains(down));
}

TEST_F(FusionTest, WhatIsReadElsewhereStaysApart) {
  document["outputs"] = testing::marked_output("mark", "out", "layers");
  const std::vector<std::string> calls = run(build(), 1);
  EXPECT_EQ(std::vector(calls.begin(), calls.begin() + 6),
            (std::vector<std::string>{"norm", "linear", "linear", "add+norm", "linear", "linear+add"}));
  document["outputs"] = testing::marked_output("mark", "x.next", "layers");
  EXPECT_EQ(run(build(), 1)[2], "linear+add");
}

TEST_F(FusionTest, RanksOfATensorGroupAddAfterTheirReduction) {
  for (const Program& program : build_ranks(2))
    for (const BoundOp& bound : program.body)
      EXPECT_EQ(bound.label.find("linear_add"), std::string::npos) << bound.label;
}

TEST_F(FusionTest, ADeviceWithoutThemRunsThePlanAsItIs) {
  table.linear_add = nullptr;
  const std::vector<std::string> want = {"norm",   "linear", "linear",   "add+norm", "linear", "linear",  "add+norm",
                                         "linear", "linear", "add+norm", "linear",   "linear", "add+norm"};
  EXPECT_EQ(run(build(), 1), want);
}

}  // namespace
}  // namespace inflight
