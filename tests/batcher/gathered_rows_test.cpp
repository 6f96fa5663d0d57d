#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "inflight_batcher/engine/program_builder.h"
#include "inflight_batcher/engine/weights.h"
#include "kernels/cpu/cpu.h"
#include "tests/batcher/tiny_engine.h"

namespace inflight {
namespace {

using testing::json;
using testing::op;
using testing::TinyNetwork;

constexpr int kRows = 6;

int& gatherings() {
  static int count = 0;
  return count;
}

/// A batch that wants the logits of all its tokens has them gathered where they lie.
struct GatheredRowsTest : ::testing::Test {
  GatheredRowsTest() {
    testing::write_safetensors(folder.path() / "model.safetensors", TinyNetwork().tensors());
    table.gather_rows = [](const GatherRowsArgs& args, DeviceContext& device) {
      ++gatherings();
      cpu::op_table().gather_rows(args, device);
    };
    std::iota(rows.begin(), rows.end(), 0);
  }

  Program build() {
    testing::write_file(folder.path() / "plan.json", document.dump());
    plan = read_plan(folder.path());
    weights = std::make_unique<WeightStore>(plan, 0, 1);
    return build_program(plan, table, *weights, group.at(0), {}, 0, 64, 8);
  }

  /// The logits that the epilogue makes of activations drawn at random. Memory of gathered rows begins as NaN.
  std::vector<float> run_epilogue(const Program& program, bool all_tokens) {
    gatherings() = 0;
    BatchView batch;
    batch.token_ids = TensorView(nullptr, DType::kInt32, {kRows});
    batch.logits_rows = TensorView(rows.data(), DType::kInt32, {kRows});
    batch.logits_rows_are_all_tokens = all_tokens;
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    arena.resize(program.arena_bytes / sizeof(float));
    for (float& value : arena) value = normal(random);
    for (const Slot& slot : program.slots)
      if (slot.rows == Rows::kLogits) std::fill_n(arena.begin() + slot.offset / sizeof(float), kRows * slot.width, NAN);
    const RunContext context{&table, &device, &batch, reinterpret_cast<std::byte*>(arena.data()), &program.slots};
    before = arena;
    for (const BoundOp& bound : program.epilogue) run_op(bound, context);
    const TensorView logits = context.view(program.logits);
    return {logits.as<float>(), logits.as<float>() + logits.elements()};
  }

  /// Whether the rows of a slot are as they were before the epilogue.
  bool is_untouched(const Slot& slot) const {
    return std::memcmp(&arena[slot.offset / sizeof(float)], &before[slot.offset / sizeof(float)],
                       kRows * slot.width * sizeof(float)) == 0;
  }

  testing::TemporaryFolder folder;
  json document = TinyNetwork().plan();
  Plan plan;
  OpTable table = cpu::op_table();
  ThreadGroup group{1};
  cpu::CpuContext device{1};
  std::unique_ptr<WeightStore> weights;
  std::vector<int32_t> rows = std::vector<int32_t>(kRows);
  std::vector<float> arena, before;
};

TEST_F(GatheredRowsTest, NothingIsCopiedWhereAllTokensAreWanted) {
  const Program program = build();
  const std::vector<float> expected = run_epilogue(program, false);
  EXPECT_EQ(gatherings(), 1);
  EXPECT_TRUE(std::isfinite(std::accumulate(expected.begin(), expected.end(), 0.0f)));
  EXPECT_EQ(run_epilogue(program, true), expected);
  EXPECT_EQ(gatherings(), 0);
}

TEST_F(GatheredRowsTest, ABatchThatDoesNotSaySoHasItsRowsGathered) {
  const Program program = build();
  const std::vector<float> in_order = run_epilogue(program, false);
  std::swap(rows.front(), rows.back());
  const std::vector<float> swapped = run_epilogue(program, false);
  const auto width = TinyNetwork::kVocabulary;
  EXPECT_EQ(std::vector(swapped.begin(), swapped.begin() + width), std::vector(in_order.end() - width, in_order.end()));
}

// The tokens' own rows must outlive the epilogue: it runs once per slice.
TEST_F(GatheredRowsTest, WhatIsOverwrittenInPlaceIsACopy) {
  json& epilogue = document["blocks"]["epilogue"];
  const json norm = op("rms_norm", {{"x", "rows"}, {"residual", "x.rows"}}, {{"weight", "norm"}},
                       {{"out", "sum.normed"}, {"residual", "sum"}}, {{"epsilon", 1e-5}});
  epilogue.insert(epilogue.begin() + 2, norm);
  epilogue.insert(epilogue.begin() + 2,
                  op("gather_rows", {{"x", "x"}, {"rows", "logits_rows"}}, {}, {{"out", "x.rows"}}));
  epilogue[4]["inputs"]["x"] = "sum.normed";
  const Program program = build();
  const std::vector<float> expected = run_epilogue(program, false);
  EXPECT_EQ(gatherings(), 2);
  EXPECT_EQ(run_epilogue(program, true), expected);
  EXPECT_EQ(gatherings(), 1);
  for (const Slot& slot : program.slots)
    if (slot.rows == Rows::kTokens && slot.last_use > static_cast<int>(program.body.size())) {
      EXPECT_TRUE(is_untouched(slot));
    }
}

}  // namespace
}  // namespace inflight
