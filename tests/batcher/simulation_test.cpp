#include "tests/batcher/simulation.h"

#include <gtest/gtest.h>

namespace inflight {
namespace {

Tally run_workloads(CapacityPolicy policy, bool plan_ahead, uint64_t first_seed, int count, bool beams = false) {
  Tally tally;
  for (uint64_t seed = first_seed; seed < first_seed + count; ++seed) {
    SCOPED_TRACE(concat("seed ", seed));
    Simulation simulation(WorkloadGenerator(seed, policy, plan_ahead, beams).make(), seed, tally);
    try {
      simulation.run();
    } catch (const std::exception& error) {
      ADD_FAILURE() << error.what();
    }
    if (testing::Test::HasFailure()) break;
  }
  return tally;
}

void expect_paths_reached(const Tally& tally) {
  for (const int64_t count :
       {tally.steps, tally.copies, tally.shared_blocks, tally.evictions, tally.offloads, tally.onboards, tally.chunks,
        tally.completed, tally.cancelled_waiting, tally.cancelled_running, tally.cancelled_in_flight,
        tally.drafts_accepted, tally.drafts_refused, tally.drafts_cut}) {
    EXPECT_GT(count, 100);
  }
}

TEST(SimulationTest, GuaranteedNoEvictSurvivesRandomWorkloads) {
  const Tally tally = run_workloads(CapacityPolicy::kGuaranteedNoEvict, false, 1, 10000);
  expect_paths_reached(tally);
  EXPECT_EQ(tally.pauses, 0);
}

TEST(SimulationTest, MaxUtilizationSurvivesRandomWorkloads) {
  const Tally tally = run_workloads(CapacityPolicy::kMaxUtilization, false, 100000, 10000);
  expect_paths_reached(tally);
  EXPECT_GT(tally.pauses, 1000);
}

void expect_planned_ahead(const Tally& tally) {
  for (const int64_t count : {tally.pending_tokens, tally.chunks_ahead, tally.wasted}) EXPECT_GT(count, 1000);
}

TEST(SimulationTest, GuaranteedNoEvictSurvivesPlanningAhead) {
  const Tally tally = run_workloads(CapacityPolicy::kGuaranteedNoEvict, true, 200000, 10000);
  expect_paths_reached(tally);
  expect_planned_ahead(tally);
  EXPECT_EQ(tally.pauses, 0);
}

TEST(SimulationTest, MaxUtilizationSurvivesPlanningAhead) {
  const Tally tally = run_workloads(CapacityPolicy::kMaxUtilization, true, 300000, 10000);
  expect_paths_reached(tally);
  expect_planned_ahead(tally);
  EXPECT_GT(tally.pauses, 1000);
}

void expect_beams(const Tally& tally) {
  for (const int64_t count : {tally.beam_steps, tally.forks, tally.fewer_beams}) EXPECT_GT(count, 1000);
  EXPECT_GT(tally.beams_cancelled, 50);
}

TEST(SimulationTest, GuaranteedNoEvictSurvivesBeams) {
  const Tally tally = run_workloads(CapacityPolicy::kGuaranteedNoEvict, false, 400000, 3000, true);
  expect_paths_reached(tally);
  expect_beams(tally);
  EXPECT_EQ(tally.pauses, 0);
}

TEST(SimulationTest, MaxUtilizationSurvivesBeamsAndPlanningAhead) {
  const Tally tally = run_workloads(CapacityPolicy::kMaxUtilization, true, 500000, 3000, true);
  expect_paths_reached(tally);
  expect_planned_ahead(tally);
  expect_beams(tally);
  EXPECT_GT(tally.beams_paused, 100);
  EXPECT_GT(tally.beams_recomputed, 100);
}

TEST(SimulationTest, MaxUtilizationSurvivesBeamsInOverlappingSteps) {
  const Tally tally = run_workloads(CapacityPolicy::kMaxUtilization, false, 600000, 3000, true);
  expect_beams(tally);
  EXPECT_GT(tally.beams_paused, 100);
}

}  // namespace
}  // namespace inflight
