#include "inflight_batcher/parallel/communicator.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>
#include <thread>

#include "tests/batcher/tiny_engine.h"

namespace inflight {
namespace {

using Floats = std::vector<float>;
using namespace std::chrono_literals;

TensorView view(Floats& values) {
  return TensorView(values.data(), DType::kFloat32, {static_cast<int64_t>(values.size())});
}

TensorView matrix(Floats& values, int64_t rows) {
  return TensorView(values.data(), DType::kFloat32, {rows, static_cast<int64_t>(values.size()) / rows});
}

/// Runs `body` as every rank and returns how many of them threw an Error.
int run_ranks(ThreadGroup& group, int size, const std::function<void(Communicator&)>& body) {
  std::atomic<int> failed{0};
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        body(group.at(rank));
      } catch (const Error&) {
        ++failed;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return failed;
}

TEST(Topology, LayersAreDealtOutWithoutGapsTheFirstStagesHavingMore) {
  const Topology topology{2, 3};
  EXPECT_EQ(topology.num_ranks(), 6);
  EXPECT_EQ(topology.stage_of(5), 2);
  EXPECT_EQ(topology.tp_rank_of(5), 1);
  EXPECT_EQ(topology.layers_of(0, 7), (std::pair{0, 3}));
  EXPECT_EQ(topology.layers_of(1, 7), (std::pair{3, 5}));
  EXPECT_EQ(topology.layers_of(2, 7), (std::pair{5, 7}));
}

TEST(ThreadGroup, AllReduceGivesTheSumInRankOrderToAllRanks) {
  constexpr int kRanks = 3;
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 1e3f);
  ThreadGroup group(kRanks);
  for (const size_t count : {1u, 2u, 7u, 1000u}) {  // also fewer elements than ranks
    std::vector<Floats> values(kRanks, Floats(count));
    for (Floats& rank : values)
      for (float& value : rank) value = normal(random);
    Floats expected(count, 0.0f);
    for (size_t i = 0; i < count; ++i)
      for (const Floats& rank : values) expected[i] += rank[i];
    EXPECT_EQ(run_ranks(group, kRanks, [&](Communicator& c) { c.all_reduce(view(values[c.rank()])); }), 0);
    for (const Floats& rank : values) EXPECT_EQ(rank, expected);
  }
}

TEST(ThreadGroup, ManyOperationsInARowStayInStep) {
  constexpr int kRanks = 2;
  ThreadGroup group(kRanks);
  EXPECT_EQ(run_ranks(group, kRanks,
                      [&](Communicator& c) {
                        for (int i = 0; i < 3000; ++i) {
                          Floats mine(3, static_cast<float>(i + c.rank()));
                          c.all_reduce(view(mine));
                          ASSERT_EQ(mine, Floats(3, static_cast<float>(2 * i + 1)));
                        }
                      }),
            0);
}

TEST(ThreadGroup, AllGatherJoinsUnevenColumns) {
  constexpr int kRanks = 3;
  ThreadGroup group(kRanks);
  std::vector<Floats> parts = {{1, 10}, {2, 3, 20, 30}, {4, 40}};  // two rows, widths 1, 2, 1
  std::vector<Floats> whole(kRanks, Floats(8));
  EXPECT_EQ(run_ranks(group, kRanks,
                      [&](Communicator& c) { c.all_gather(matrix(parts[c.rank()], 2), matrix(whole[c.rank()], 2)); }),
            0);
  for (const Floats& rank : whole) EXPECT_EQ(rank, (Floats{1, 2, 3, 4, 10, 20, 30, 40}));
}

TEST(ThreadGroup, ShapesThatDoNotFitFailOnEveryRankAndNothingIsWritten) {
  constexpr int kRanks = 2;
  ThreadGroup group(kRanks);
  std::vector<Floats> values = {Floats(3, 1.0f), Floats(4, 1.0f)};
  EXPECT_EQ(run_ranks(group, kRanks, [&](Communicator& c) { c.all_reduce(view(values[c.rank()])); }), kRanks);
  std::vector<Floats> out(kRanks, Floats(5, -1.0f));
  EXPECT_EQ(run_ranks(group, kRanks,
                      [&](Communicator& c) { c.all_gather(matrix(values[c.rank()], 1), matrix(out[c.rank()], 1)); }),
            kRanks);
  EXPECT_EQ(out[0], Floats(5, -1.0f));
  EXPECT_EQ(values[0], Floats(3, 1.0f));
}

TEST(ThreadGroup, SendsArriveInOrder) {
  ThreadGroup group(3);
  EXPECT_EQ(run_ranks(group, 3,
                      [&](Communicator& c) {
                        for (int i = 0; i < 500; ++i) {
                          Floats value(5, static_cast<float>(i));
                          if (c.rank() < 2) {
                            value[0] = static_cast<float>(c.rank());
                            c.send(view(value), 2);
                            continue;
                          }
                          for (int from : {1, 0}) {
                            c.receive(view(value), from);
                            ASSERT_EQ(value[0], static_cast<float>(from));
                            ASSERT_EQ(value[1], static_cast<float>(i));
                          }
                        }
                      }),
            0);
}

TEST(ThreadGroup, ASenderWaitsWhenTheReceiverIsTooFarBehind) {
  ThreadGroup group(2);
  std::atomic<int> sent{0};
  std::thread sender([&] {
    for (int i = 0; i < 100; ++i) {
      Floats value(1, static_cast<float>(i));
      group.at(0).send(view(value), 1);
      ++sent;
    }
  });
  int before = -1;
  while (before != sent || before == 0) {
    before = sent;
    std::this_thread::sleep_for(20ms);
  }
  EXPECT_LT(before, 100);
  Floats value(1);
  for (int i = 0; i < 100; ++i) {
    group.at(1).receive(view(value), 0);
    EXPECT_EQ(value[0], static_cast<float>(i));
  }
  sender.join();
  EXPECT_EQ(sent, 100);
}

TEST(ThreadGroup, ATensorOfAnotherSizeIsRefusedByTheReceiver) {
  ThreadGroup group(2);
  Floats three(3), two(2);
  group.at(0).send(view(three), 1);
  testing::expect_error(ErrorCode::kInternal, {"12 bytes", "[2] float32"}, [&] { group.at(1).receive(view(two), 0); });
}

struct Operation {
  const char* name;
  std::function<void(Communicator&)> run;
};

class AbortTest : public ::testing::TestWithParam<int> {
 public:
  static const std::vector<Operation>& operations() {
    static const std::vector<Operation> all = {{"all_reduce",
                                                [](Communicator& c) {
                                                  Floats v(4);
                                                  c.all_reduce(view(v));
                                                }},
                                               {"all_gather",
                                                [](Communicator& c) {
                                                  Floats v(4), out(12);
                                                  c.all_gather(matrix(v, 1), matrix(out, 1));
                                                }},
                                               {"receive",
                                                [](Communicator& c) {
                                                  Floats v(4);
                                                  c.receive(view(v), 2);
                                                }},
                                               {"send", [](Communicator& c) {
                                                  for (Floats v(4);;) c.send(view(v), 2);
                                                }}};
    return all;
  }
};

TEST_P(AbortTest, WakesEverybodyAndResetMakesTheGroupUsable) {
  constexpr int kRanks = 3;
  const Operation& operation = operations()[GetParam()];
  ThreadGroup group(kRanks);
  for (const auto delay : {0us, 300us, 20000us}) {  // abort before, about when and long after the others wait
    EXPECT_EQ(run_ranks(group, kRanks,
                        [&](Communicator& c) {
                          if (c.rank() == 2) {
                            std::this_thread::sleep_for(delay);
                            c.abort();
                          } else {
                            operation.run(c);
                          }
                        }),
              kRanks - 1)
        << operation.name;
    EXPECT_EQ(run_ranks(group, kRanks, operation.run), kRanks) << "aborted, yet it takes " << operation.name;
    group.reset();
    EXPECT_EQ(run_ranks(group, kRanks,
                        [](Communicator& c) {
                          Floats value(2, 1.0f);
                          c.all_reduce(view(value));
                          ASSERT_EQ(value, Floats(2, 3.0f));
                          if (c.rank() == 0) c.send(view(value), 1);
                          if (c.rank() == 1) c.receive(view(value), 0);
                        }),
              0);
  }
}

INSTANTIATE_TEST_SUITE_P(Operations, AbortTest, ::testing::Range(0, 4),
                         [](const auto& info) { return AbortTest::operations()[info.param].name; });

// The tensors are on the ranks' stacks: after an abort nobody may still be writing to that of a rank that has left.
TEST(ThreadGroup, AnAbortAtAnyMomentFindsAllRanksOutOrAllStillInTheOperation) {
  constexpr int kRanks = 2;
  for (int round = 0; round < 200; ++round) {
    ThreadGroup group(kRanks);
    std::thread breaker([&, round] {
      std::this_thread::sleep_for(std::chrono::microseconds(round % 50));
      group.abort();
    });
    std::array<std::atomic<int>, kRanks> done{};
    EXPECT_EQ(run_ranks(group, kRanks,
                        [&](Communicator& c) {
                          while (true) {
                            Floats value(64, 1.0f);
                            c.all_reduce(view(value));
                            ASSERT_EQ(value, Floats(64, 2.0f));
                            ++done[c.rank()];
                          }
                        }),
              kRanks);
    breaker.join();
    EXPECT_EQ(done[0], done[1]);
  }
}

}  // namespace
}  // namespace inflight
