#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <random>
#include <set>

#include "inflight_batcher/scheduler/scheduler.h"
#include "tests/batcher/simulation_workload.h"

namespace inflight {
namespace {

/// What the cache holds for a position: a digest of all tokens up to it, as keys and values depend on all of them.
uint64_t digest(uint64_t before, TokenId token) {
  uint64_t value = (before ^ static_cast<uint64_t>(token + 1)) * 0x9E3779B97F4A7C15ull;
  value ^= value >> 29;
  return value * 0xBF58476D1CE4E5B9ull ^ value >> 32;
}

/// What happened over all workloads: shows that the simulation reaches the paths it is meant for.
struct Tally {
  int64_t steps = 0, pauses = 0, copies = 0, shared_blocks = 0, evictions = 0, chunks = 0;
  int64_t cancelled_waiting = 0, cancelled_running = 0, cancelled_in_flight = 0, completed = 0;
};

/// Runs a workload against a model of the device's memory and checks every step of the scheduler.
class Simulation {
 public:
  Simulation(Workload workload, uint64_t seed, Tally& tally)
      : workload_(std::move(workload)),
        setup_(workload_.setup),
        random_(seed + 1),
        tally_(tally),
        kv_cache_(setup_.kv),
        scheduler_(setup_.scheduler, kv_cache_),
        memory_(setup_.kv.num_blocks, std::vector<uint64_t>(setup_.kv.block_size)) {}

  void run() {
    const size_t limit = step_limit();
    for (size_t steps = 0; !is_done(); ++steps) {
      ASSERT_LE(steps, limit) << "somebody starves";
      maybe_add();
      maybe_cancel();
      advance();
      if (testing::Test::HasFatalFailure()) return;
      kv_cache_.check_invariants();
      scheduler_.check_invariants();
    }
    check_end();
  }

 private:
  /// A sequence as the caller sees it.
  struct Live {
    const Scheduler::NewSequence* request = nullptr;
    int length = 0;
    size_t arrival = 0;
    int computed = -1;  // -1: waits
    int slot = -1;
    int context_end = 0;
    bool in_flight = false;
    bool cancelled = false;
  };

  struct Work {
    Scheduler::Item item;
    std::vector<TokenId> tokens;
    std::vector<int32_t> table;
  };

  struct StepInFlight {
    std::vector<Work> work;
    std::vector<TokenId> sampled;
    bool executed = false;
  };

  bool chance(double probability) { return std::bernoulli_distribution(probability)(random_); }
  bool is_done() const { return arrived_ == workload_.arrivals.size() && live_.empty() && steps_.empty(); }

  /// Each round the highest rank gets a step or a step completes; it may lose what it had to each new arrival once.
  size_t step_limit() const {
    size_t tokens = 0;
    for (const auto& request : workload_.arrivals) tokens += request.max_total_tokens;
    return 2 * (setup_.max_in_flight + 1) * (tokens + 10) + 20 * workload_.arrivals.size();
  }

  void maybe_add() {
    while (arrived_ < workload_.arrivals.size() && chance(0.4)) {
      const Scheduler::NewSequence& request = workload_.arrivals[arrived_];
      live_[request.id] = {&request, workload_.lengths[arrived_], arrived_};
      ++arrived_;
      scheduler_.add(request);
    }
  }

  void maybe_cancel() {
    if (live_.empty() || !chance(setup_.cancel_probability)) return;
    auto place = live_.begin();
    std::advance(place, std::uniform_int_distribution<size_t>(0, live_.size() - 1)(random_));
    Live& sequence = place->second;
    if (sequence.cancelled) return;
    check_tokens(place->first);
    scheduler_.finish(place->first);
    ASSERT_FALSE(scheduler_.contains(place->first));
    ++(sequence.in_flight ? tally_.cancelled_in_flight
                          : (sequence.computed < 0 ? tally_.cancelled_waiting : tally_.cancelled_running));
    sequence.cancelled = true;
    if (!sequence.in_flight) end(place->first);
  }

  void advance() {
    const bool full = static_cast<int>(steps_.size()) == setup_.max_in_flight;
    if (!full && (steps_.empty() || chance(0.6))) {
      plan();
    } else {
      complete_oldest();
    }
  }

  void plan() {
    const Scheduler::Step step = scheduler_.plan();
    for (const SequenceId id : step.paused) check_pause(id);
    if (step.items.empty()) {
      ASSERT_FALSE(steps_.empty() && !live_.empty()) << "nothing planned, nothing in flight, somebody lives";
      return;
    }
    check_budgets(step);
    StepInFlight& under_way = steps_.emplace_back();
    for (const Scheduler::Item& item : step.items) {
      check_item(item);
      if (testing::Test::HasFatalFailure()) return;
      const auto tokens = scheduler_.tokens(item.id);
      const auto table = kv_cache_.block_table(item.id);
      under_way.work.push_back({item, {tokens.begin(), tokens.end()}, {table.begin(), table.end()}});
    }
    check_order(step);
    ++tally_.steps;
    if (chance(0.5)) execute_through(steps_.size());
  }

  void check_pause(SequenceId id) {
    Live& sequence = live_.at(id);
    ASSERT_EQ(setup_.scheduler.policy, CapacityPolicy::kMaxUtilization);
    ASSERT_GE(sequence.computed, 0) << "a waiting sequence is paused";
    ASSERT_FALSE(sequence.in_flight) << "a sequence in flight is paused";
    sequence.computed = sequence.slot = -1;
    ++tally_.pauses;
  }

  void check_budgets(const Scheduler::Step& step) {
    int tokens = 0;
    for (const Scheduler::Item& item : step.items) tokens += item.count;
    ASSERT_EQ(tokens, step.num_tokens);
    ASSERT_LE(tokens, setup_.scheduler.max_num_tokens);
    int running = 0;
    for (const auto& [id, sequence] : live_) running += sequence.computed >= 0;
    for (const Scheduler::Item& item : step.items) running += item.admitted;
    ASSERT_LE(running, setup_.scheduler.max_batch_size);
  }

  void check_item(const Scheduler::Item& item) {
    Live& sequence = live_.at(item.id);
    ASSERT_FALSE(sequence.in_flight || sequence.cancelled);
    const int size = static_cast<int>(scheduler_.tokens(item.id).size());
    ASSERT_LT(size, sequence.request->max_total_tokens);
    ASSERT_EQ(item.admitted, sequence.computed < 0);
    if (item.admitted) take_admission(item, sequence, size);
    if (testing::Test::HasFatalFailure()) return;
    ASSERT_EQ(item.first, sequence.computed);
    ASSERT_EQ(item.slot, sequence.slot);
    ASSERT_GE(item.count, 1);
    ASSERT_LE(item.first + item.count, size);
    ASSERT_EQ(item.samples, item.first + item.count == size);
    ASSERT_EQ(item.is_context, item.first < sequence.context_end);
    ASSERT_TRUE(item.samples || setup_.scheduler.enable_chunked_context) << "a context was cut";
    ASSERT_LE(kv_cache_.blocks_for(item.first + item.count), static_cast<int>(kv_cache_.block_table(item.id).size()));
    sequence.in_flight = true;
    tally_.chunks += !item.samples;
  }

  void take_admission(const Scheduler::Item& item, Live& sequence, int size) {
    const KvCacheManager::Admission& admission = item.admission;
    const int block_size = setup_.kv.block_size;
    const int shared = admission.reused_blocks - static_cast<int>(admission.copies.size());
    ASSERT_LT(admission.reused_tokens, size);
    ASSERT_EQ(shared, admission.reused_tokens / block_size);
    ASSERT_EQ(shared + admission.new_blocks, kv_cache_.blocks_for(size));
    ASSERT_TRUE(admission.reused_tokens == 0 || (setup_.kv.enable_reuse && sequence.request->reuse_prefix));
    for (const KvBlockCopy& copy : admission.copies) {
      ASSERT_EQ(copy.destination, kv_cache_.block_table(item.id)[shared]);
      ASSERT_EQ(copy.num_tokens, admission.reused_tokens % block_size);
    }
    for (const auto& [id, other] : live_) ASSERT_NE(other.slot, item.slot) << "slot taken twice";
    check_not_overtaking(item.id);
    sequence.computed = admission.reused_tokens;
    sequence.slot = item.slot;
    sequence.context_end = size;
    tally_.copies += static_cast<int64_t>(admission.copies.size());
    tally_.shared_blocks += shared;
  }

  /// Nobody of higher rank may still wait when a sequence is admitted.
  void check_not_overtaking(SequenceId id) {
    const Live& sequence = live_.at(id);
    for (const auto& [other_id, other] : live_) {
      if (other.computed >= 0 || other_id == id || other.cancelled) continue;
      const float priority = sequence.request->priority, other_priority = other.request->priority;
      const bool outranks =
          other_priority > priority || (other_priority == priority && other.arrival < sequence.arrival);
      ASSERT_FALSE(outranks) << "sequence " << id << " overtakes " << other_id;
    }
  }

  void check_order(const Scheduler::Step& step) {
    const auto is_context = [](const Scheduler::Item& item) { return item.is_context; };
    ASSERT_TRUE(std::is_partitioned(step.items.begin(), step.items.end(), std::not_fn(is_context)));
  }

  /// The device runs steps in order, each at any time between its planning and its completion.
  void execute_through(size_t count) {
    for (size_t i = 0; i < count; ++i) {
      if (!steps_[i].executed) execute(steps_[i]);
    }
  }

  void execute(StepInFlight& step) {
    step.executed = true;
    for (const Work& work : step.work) {
      for (const KvBlockCopy& copy : work.item.admission.copies) {
        std::copy_n(memory_[copy.source].begin(), copy.num_tokens, memory_[copy.destination].begin());
      }
    }
    for (const Work& work : step.work) check_reads(work);
    for (const Work& work : step.work) step.sampled.push_back(write(work));
    for (const Work& work : step.work) check_reads(work);
  }

  uint64_t& cell(const Work& work, int position) {
    return memory_[work.table[position / setup_.kv.block_size]][position % setup_.kv.block_size];
  }

  void check_reads(const Work& work) {
    uint64_t wanted = 0;
    for (int position = 0; position < work.item.first; ++position) {
      wanted = digest(wanted, work.tokens[position]);
      ASSERT_EQ(cell(work, position), wanted)
          << "sequence " << work.item.id << " reads foreign content at " << position;
    }
  }

  /// Computes an item's tokens from what memory has before them; returns the token that its last one brings forth.
  TokenId write(const Work& work) {
    uint64_t value = work.item.first > 0 ? cell(work, work.item.first - 1) : 0;
    for (int i = 0; i < work.item.count; ++i) {
      const int position = work.item.first + i;
      value = digest(value, work.tokens[position]);
      cell(work, position) = value;
    }
    return static_cast<TokenId>(value % setup_.vocabulary);
  }

  void complete_oldest() {
    execute_through(1);
    if (testing::Test::HasFatalFailure()) return;
    const StepInFlight step = std::move(steps_.front());
    steps_.pop_front();
    for (size_t i = 0; i < step.work.size(); ++i) {
      const Scheduler::Item& item = step.work[i].item;
      scheduler_.complete(item, item.samples ? std::optional(step.sampled[i]) : std::nullopt);
      Live& sequence = live_.at(item.id);
      sequence.in_flight = false;
      sequence.computed += item.count;
      if (sequence.cancelled) {
        end(item.id);
      } else if (static_cast<int>(scheduler_.tokens(item.id).size()) == sequence.length) {
        check_tokens(item.id);
        scheduler_.finish(item.id);
        end(item.id);
        ++tally_.completed;
      }
    }
  }

  void end(SequenceId id) {
    ASSERT_FALSE(scheduler_.contains(id));
    ASSERT_TRUE(ended_.insert(id).second) << "sequence " << id << " ended twice";
    live_.erase(id);
  }

  /// What the sequence has is what it would have alone.
  void check_tokens(SequenceId id) {
    const std::span<const TokenId> found = scheduler_.tokens(id);
    std::vector<TokenId> wanted = live_.at(id).request->prompt;
    uint64_t value = 0;
    for (size_t i = 0; wanted.size() < found.size(); ++i) {
      value = digest(value, wanted[i]);
      if (i + 1 == wanted.size()) wanted.push_back(static_cast<TokenId>(value % setup_.vocabulary));
    }
    ASSERT_TRUE(std::ranges::equal(found, wanted)) << "sequence " << id << " has other tokens than alone";
  }

  void check_end() {
    ASSERT_EQ(ended_.size(), workload_.arrivals.size());
    ASSERT_EQ(scheduler_.counts().waiting + scheduler_.counts().running, 0);
    const KvCacheManager::Stats stats = kv_cache_.stats();
    ASSERT_EQ(stats.free_blocks, stats.max_blocks);
    ASSERT_EQ(stats.used_blocks, 0);
    tally_.evictions += stats.evicted_blocks;
    kv_cache_.clear_cache();
    kv_cache_.check_invariants();
    ASSERT_EQ(kv_cache_.stats().cached_blocks, 0);
  }

  const Workload workload_;
  const Setup& setup_;
  std::mt19937_64 random_;
  Tally& tally_;
  KvCacheManager kv_cache_;
  Scheduler scheduler_;
  std::vector<std::vector<uint64_t>> memory_;  // [block][position in block]
  std::map<SequenceId, Live> live_;
  std::set<SequenceId> ended_;
  std::deque<StepInFlight> steps_;
  size_t arrived_ = 0;
};

Tally run_workloads(CapacityPolicy policy, uint64_t first_seed, int count) {
  Tally tally;
  for (uint64_t seed = first_seed; seed < first_seed + count; ++seed) {
    SCOPED_TRACE(concat("seed ", seed));
    Simulation simulation(WorkloadGenerator(seed, policy).make(), seed, tally);
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
       {tally.steps, tally.copies, tally.shared_blocks, tally.evictions, tally.chunks, tally.completed,
        tally.cancelled_waiting, tally.cancelled_running, tally.cancelled_in_flight}) {
    EXPECT_GT(count, 100);
  }
}

TEST(SimulationTest, GuaranteedNoEvictSurvivesRandomWorkloads) {
  const Tally tally = run_workloads(CapacityPolicy::kGuaranteedNoEvict, 1, 10000);
  expect_paths_reached(tally);
  EXPECT_EQ(tally.pauses, 0);
}

TEST(SimulationTest, MaxUtilizationSurvivesRandomWorkloads) {
  const Tally tally = run_workloads(CapacityPolicy::kMaxUtilization, 100000, 10000);
  expect_paths_reached(tally);
  EXPECT_GT(tally.pauses, 1000);
}

}  // namespace
}  // namespace inflight
