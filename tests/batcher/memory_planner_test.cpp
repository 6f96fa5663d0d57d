#include <gtest/gtest.h>

#include <random>

#include "inflight_batcher/engine/program.h"

namespace inflight {
namespace {

constexpr size_t kAlignment = 256;

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

Slot slot(int64_t width, int first_use, int last_use, Rows rows = Rows::kTokens, DType dtype = DType::kFloat32) {
  return {rows, width, dtype, 0, first_use, last_use};
}

size_t bytes_of(const Slot& slot, int64_t tokens, int64_t logits_rows) {
  return (slot.rows == Rows::kTokens ? tokens : logits_rows) * slot.width * size_of(slot.dtype);
}

void expect_disjoint_while_alive(const std::vector<Slot>& slots, int64_t tokens, int64_t logits_rows, size_t total) {
  for (size_t i = 0; i < slots.size(); ++i) {
    const size_t end = slots[i].offset + bytes_of(slots[i], tokens, logits_rows);
    ASSERT_EQ(slots[i].offset % kAlignment, 0u);
    ASSERT_LE(end, total);
    for (size_t j = 0; j < i; ++j) {
      if (slots[i].first_use > slots[j].last_use || slots[j].first_use > slots[i].last_use) continue;
      const size_t other_end = slots[j].offset + bytes_of(slots[j], tokens, logits_rows);
      ASSERT_TRUE(end <= slots[j].offset || other_end <= slots[i].offset) << "slots " << j << " and " << i;
    }
  }
}

TEST(PlanMemory, SlotsAliveTogetherNeverOverlap) {
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    std::vector<Slot> slots;
    const int count = 1 + static_cast<int>(random() % 40);
    for (int i = 0; i < count; ++i) {
      const int first = static_cast<int>(random() % 30);
      slots.push_back(slot(1 + random() % 300, first, first + static_cast<int>(random() % 8),
                           random() % 4 ? Rows::kTokens : Rows::kLogits,
                           random() % 3 ? DType::kFloat32 : DType::kBfloat16));
    }
    const int64_t tokens = 1 + random() % 50, logits_rows = 1 + random() % 10;
    const size_t total = plan_memory(slots, tokens, logits_rows);
    expect_disjoint_while_alive(slots, tokens, logits_rows, total);
    size_t sum = 0;
    for (const Slot& s : slots) sum += aligned(bytes_of(s, tokens, logits_rows));
    ASSERT_LE(total, sum);
  }
}

TEST(PlanMemory, AChainNeedsItsWidestPair) {
  std::vector<Slot> slots = {slot(64, 0, 1), slot(192, 1, 2), slot(64, 2, 3), slot(128, 3, 4)};
  EXPECT_EQ(plan_memory(slots, 10, 1), aligned(10 * 64 * 4) + aligned(10 * 192 * 4));
}

TEST(PlanMemory, ALongChainOfEqualsNeedsTwo) {
  std::vector<Slot> slots;
  for (int i = 0; i < 100; ++i) slots.push_back(slot(64, i, i + 1));
  EXPECT_EQ(plan_memory(slots, 4, 1), 2 * aligned(4 * 64 * 4));
}

TEST(PlanMemory, WhatLivesThroughoutIsAddedToTheChain) {
  std::vector<Slot> slots = {slot(64, 0, 9)};
  for (int i = 0; i < 9; ++i) slots.push_back(slot(128, i, i + 1));
  EXPECT_EQ(plan_memory(slots, 2, 1), aligned(2 * 64 * 4) + 2 * aligned(2 * 128 * 4));
}

TEST(PlanMemory, SlotsAliveTogetherTakeTheirSum) {
  std::vector<Slot> slots = {slot(10, 0, 5), slot(20, 2, 5), slot(30, 5, 6)};
  EXPECT_EQ(plan_memory(slots, 100, 1), aligned(4000) + aligned(8000) + aligned(12000));
}

TEST(PlanMemory, RowsCountByTheirKind) {
  std::vector<Slot> slots = {slot(100, 0, 0, Rows::kLogits)};
  EXPECT_EQ(plan_memory(slots, 1000, 3), aligned(3 * 100 * 4));
}

TEST(PlanMemory, NothingNeedsNothing) {
  std::vector<Slot> slots;
  EXPECT_EQ(plan_memory(slots, 10, 10), 0u);
}

}  // namespace
}  // namespace inflight
