#include <gtest/gtest.h>

#include <future>

#include "inflight_batcher/engine/plan_passes.h"
#include "inflight_batcher/engine/program_builder.h"
#include "inflight_batcher/engine/weights.h"
#include "kernels/cpu/cpu.h"
#include "tests/batcher/tiny_engine.h"
#include "tests/kernels/paged_batch.h"

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

constexpr int kRope = 1, kAttention = 2;  // among the layer's ops

/// A device with a kernel for rope_kv_write and attention that leaves nothing in q.
struct RopeFusionTest : FusionTest {
  RopeFusionTest() {
    table = cpu::op_table();
    table.rope_attention = [](const RopeKvWriteArgs& rope, const AttentionArgs& args, const BatchView& batch,
                              DeviceContext& device) {
      cpu::op_table().rope_kv_write(rope, batch, device);
      cpu::op_table().attention(args, batch, device);
      std::memset(rope.q.data, 0xff, rope.q.bytes());
    };
  }

  static int64_t count_fused(const Program& program) {
    return std::count_if(program.body.begin(), program.body.end(), [](const BoundOp& bound) {
      return bound.label.find("'rope_attention' -> attended") != std::string::npos;
    });
  }

  /// What the pass makes of the layer's ops.
  std::vector<std::string> fused_ops() {
    testing::write_file(folder.path() / "plan.json", document.dump());
    plan = read_plan(folder.path());
    std::vector<std::string> names;
    for (const PlanOp& fused : fuse_rope_attention(plan, plan.unit, "layer 0")) names.push_back(fused.op);
    return names;
  }

  /// The attributes of the layer's `index`-th op.
  json& attributes(int index) { return ops()[index]["attributes"]; }
  json& ops() { return document["blocks"]["layers"]["ops"]; }

  /// Bits of the logits after chunks of two sequences and their next tokens.
  std::string logits(const Program& program) {
    const test::CacheShape shape{TinyNetwork::kKvHeads, 4, TinyNetwork::kHeadSize};
    test::Random random;
    test::PagedBatch layers[] = {{{{0, 7}, {0, 9}}, shape, random}, {{{0, 7}, {0, 9}}, shape, random}};
    layers[1].block_tables() = layers[0].block_tables();
    test::PagedBatch next({{7, 1}, {9, 1}}, shape, random);
    next.block_tables() = layers[0].block_tables();
    std::vector<KvCacheView> cache = {layers[0].cache(), layers[1].cache()};
    const test::Tensor rows = test::Tensor::ints({0, 1});
    std::vector<std::byte> arena(program.arena_bytes, std::byte{0xff});
    std::string bits;
    for (BatchView batch : {layers[0].view(), next.view()}) {
      batch.logits_rows = rows;
      const RunContext context{&table, &device, &batch, arena.data(), &program.slots, &cache};
      for (const BoundOp& bound : program.body) run_op(bound, context);
      for (const BoundOp& bound : program.epilogue) run_op(bound, context);
      const TensorView view = context.view(program.logits);
      bits.append(view.as<char>(), view.bytes());
    }
    return bits;
  }
};

TEST_F(RopeFusionTest, TheyBecomeOneOpOfEveryLayerOnEveryRank) {
  for (const int ranks : {1, 2})
    for (const Program& program : build_ranks(ranks)) EXPECT_EQ(count_fused(program), TinyNetwork().layers);
}

TEST_F(RopeFusionTest, TheOpDoesWhatBothDo) {
  attributes(kRope).update({{"interleaved", true}, {"rope_scale", 1.25}, {"inverse_frequencies", {0.7}}});
  attributes(kAttention).update({{"window", 3}, {"soft_cap", 2.0}, {"alibi_slopes", {0.1, 0.2, 0.3, 0.4}}});
  for (json& layer : document["kv_cache"]) layer["window"] = 3;
  const std::string fused = logits(build());
  table.rope_attention = nullptr;
  EXPECT_EQ(fused, logits(build()));
}

TEST_F(RopeFusionTest, QueriesThatAreReadElsewhereStayApart) {
  document["outputs"] = testing::marked_output("mark", "q", "layers");
  EXPECT_EQ(count_fused(build()), 0);
  document["outputs"] = testing::marked_output("mark", "attended", "layers");
  EXPECT_EQ(count_fused(build()), 2);
  document["outputs"] = json::array();
  ops().push_back(op("activation", {{"x", "q"}}, {}, {{"out", "late"}}, {{"activation", "relu"}}));
  EXPECT_EQ(count_fused(build()), 0);
}

TEST_F(RopeFusionTest, OnlyAPairOfOneLayerAndItsHeadsIsOne) {
  const json saved = document;
  const std::vector<std::string> apart = {"linear", "rope_kv_write", "attention"};
  const auto first_three = [&] {
    const std::vector<std::string> names = fused_ops();
    return std::vector(names.begin(), names.begin() + 3);
  };
  EXPECT_EQ(first_three(), (std::vector<std::string>{"linear", "rope_attention", "linear"}));
  for (const char* name : {"layer", "num_heads", "num_kv_heads", "head_size"}) {
    attributes(kAttention)[name] = 1;
    attributes(kRope)[name] = 2;
    EXPECT_EQ(first_three(), apart) << name;
    document = saved;
  }
  ops()[kAttention]["inputs"]["q"] = "qkv";
  EXPECT_EQ(first_three(), apart);
  document = saved;
  ops().insert(ops().begin() + kAttention, op("activation", {{"x", "qkv"}}, {}, {{"out", "late"}}));
  EXPECT_EQ(first_three(), (std::vector<std::string>{"linear", "rope_kv_write", "activation"}));
}

TEST_F(RopeFusionTest, ADeviceWithoutItRunsThePlanAsItIs) {
  table.rope_attention = nullptr;
  EXPECT_EQ(count_fused(build()), 0);
}

}  // namespace
}  // namespace inflight
