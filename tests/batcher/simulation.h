#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <random>
#include <set>
#include <utility>

#include "inflight_batcher/scheduler/scheduler.h"
#include "tests/batcher/simulation_beams.h"
#include "tests/batcher/simulation_device.h"
#include "tests/batcher/simulation_workload.h"

namespace inflight {

/// What happened over all workloads: shows that the simulation reaches the paths it is meant for.
struct Tally {
  int64_t steps = 0, pauses = 0, copies = 0, shared_blocks = 0, evictions = 0, chunks = 0;
  int64_t cancelled_waiting = 0, cancelled_running = 0, cancelled_in_flight = 0, completed = 0;
  int64_t offloads = 0, onboards = 0;
  int64_t pending_tokens = 0, chunks_ahead = 0, wasted = 0;
  int64_t drafts_accepted = 0, drafts_refused = 0, drafts_cut = 0;
  int64_t beam_steps = 0, forks = 0, fewer_beams = 0, beams_paused = 0, beams_recomputed = 0;
  int64_t beams_cancelled = 0;
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
        device_(setup_) {}

  void run() {
    const size_t limit = step_limit();
    for (size_t steps = 0; !is_done(); ++steps) {
      ASSERT_LE(steps, limit) << "somebody starves";
      now_ms_ += std::uniform_int_distribution<int>(0, 3)(random_);
      kv_cache_.set_time(now_ms_);
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
    int planned = -1;  // tokens computed when what is in flight is complete; -1: waits
    int slot = -1;
    int context_end = 0;
    int in_flight = 0;  // items
    int samples_in_flight = 0;
    int drafts_in_flight = 0;
    bool ended = false;  // cancelled or complete; still here while in flight
    SimulatedBeams beams;

    bool has_beams() const { return request->beam_width > 1; }
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
      live_[request.id].beams = SimulatedBeams(request.prompt, request.beam_width, setup_.vocabulary);
      ++arrived_;
      scheduler_.add(request);
    }
  }

  void maybe_cancel() {
    if (live_.empty() || !chance(setup_.cancel_probability)) return;
    auto place = live_.begin();
    std::advance(place, std::uniform_int_distribution<size_t>(0, live_.size() - 1)(random_));
    Live& sequence = place->second;
    if (sequence.ended) return;
    ++(sequence.in_flight > 0 ? tally_.cancelled_in_flight
                              : (sequence.planned < 0 ? tally_.cancelled_waiting : tally_.cancelled_running));
    tally_.beams_cancelled += sequence.has_beams() && sequence.beams.spread();
    finish(place->first);
  }

  void finish(SequenceId id) {
    Live& sequence = live_.at(id);
    check_tokens(id);
    scheduler_.finish(id);
    ASSERT_FALSE(scheduler_.contains(id));
    sequence.ended = true;
    if (sequence.in_flight == 0) remove(id);
  }

  void advance() {
    const bool full = static_cast<int>(steps_.size()) == setup_.max_in_flight;
    if (full || (!setup_.eager && !steps_.empty() && chance(0.4))) {
      complete_oldest();
    } else {
      const size_t before = steps_.size();
      plan();
      if (steps_.size() == before && before > 0) complete_oldest();
    }
  }

  void plan() {
    const Scheduler::Step step = scheduler_.plan();
    for (const SequenceId id : step.paused) check_pause(id);
    if (step.items.empty()) {
      ASSERT_TRUE(step.copies.empty()) << "copies without anybody who needs them";
      ASSERT_FALSE(steps_.empty() && !live_.empty()) << "nothing planned, nothing in flight, somebody lives";
      return;
    }
    check_budgets(step);
    SimulatedStep& under_way = steps_.emplace_back();
    under_way.copies = step.copies;
    seen_in_step_.clear();
    seen_beams_.clear();
    for (const Scheduler::Item& item : step.items) {
      check_item(item, step.copies);
      if (testing::Test::HasFatalFailure()) return;
      const auto tokens = scheduler_.tokens(item);
      const auto table = kv_cache_.block_table(item.table);
      SimulatedStep::Work& work =
          under_way.work.emplace_back(item, std::vector(tokens.begin(), tokens.end()),
                                      std::vector(table.begin(), table.end()), live_.at(item.id).request->kv_policy);
      work.tokens.insert(work.tokens.end(), item.drafts.begin(), item.drafts.end());
    }
    check_order(step);
    check_beams_together(step);
    check_highest_advances();
    ++tally_.steps;
    if (chance(0.5)) execute_through(steps_.size());
  }

  static bool outranks(const Live& one, const Live& other) {
    const float priority = one.request->priority, other_priority = other.request->priority;
    return priority > other_priority || (priority == other_priority && one.arrival < other.arrival);
  }

  /// Nobody goes on and on while the highest rank does not: it may only wait for the steps under way to end, so that
  /// those below it land and make room.
  void check_highest_advances() {
    const Live* highest = nullptr;
    for (const auto& [id, sequence] : live_) {
      const bool runs = sequence.planned >= 0 && !sequence.ended;
      if (runs && (!highest || outranks(sequence, *highest))) highest = &sequence;
    }
    if (!highest || setup_.scheduler.steps_in_flight > 1) return;
    const int known = static_cast<int>(scheduler_.tokens(highest->request->id).size());
    // Generation goes first, whatever its rank.
    const bool in_context = highest->planned < highest->context_end || recomputes_beams(*highest);
    const bool advances = in_context || highest->in_flight > 0 || known >= highest->request->max_total_tokens;
    const bool same = std::exchange(last_highest_, highest->request->id) == highest->request->id;
    steps_without_highest_ = advances ? 0 : 1 + (same ? steps_without_highest_ : 0);
    ASSERT_LE(steps_without_highest_, setup_.max_in_flight) << "sequence " << highest->request->id;
  }

  void check_pause(SequenceId id) {
    Live& sequence = live_.at(id);
    ASSERT_EQ(setup_.scheduler.policy, CapacityPolicy::kMaxUtilization);
    ASSERT_GE(sequence.planned, 0) << "a waiting sequence is paused";
    ASSERT_EQ(sequence.in_flight, 0) << "a sequence in flight is paused";
    sequence.planned = sequence.slot = -1;
    ++tally_.pauses;
    tally_.beams_paused += sequence.beams.spread();
    if (!sequence.beams.spread()) return;
    for (auto& beam : sequence.beams.beams()) beam.planned = static_cast<int>(sequence.request->prompt.size());
  }

  static bool recomputes_beams(const Live& sequence) {
    const auto& beams = sequence.beams.beams();
    return sequence.beams.spread() && std::any_of(beams.begin(), beams.end(), [](const SimulatedBeams::Beam& beam) {
             return beam.planned + 1 < static_cast<int>(beam.tokens.size());
           });
  }

  /// The beams of a sequence are sampled in one step, all of them.
  void check_beams_together(const Scheduler::Step& step) {
    std::map<SequenceId, size_t> sampled;
    for (const Scheduler::Item& item : step.items) {
      const Live& sequence = live_.at(item.id);
      if (sequence.beams.spread() && item.samples) ++sampled[item.id];
    }
    for (const auto& [id, count] : sampled) {
      ASSERT_EQ(count, live_.at(id).beams.beams().size()) << "sequence " << id;
      ++tally_.beam_steps;
      tally_.fewer_beams += static_cast<int>(count) < live_.at(id).request->beam_width;
    }
  }

  void check_beam_item(const Scheduler::Item& item, Live& sequence) {
    SimulatedBeams::Beam* beam = sequence.beams.in_lane(item.lane);
    ASSERT_TRUE(beam) << "sequence " << item.id << " has no beam in lane " << item.lane;
    ASSERT_TRUE(std::ranges::equal(scheduler_.tokens(item), beam->tokens));
    const int size = static_cast<int>(beam->tokens.size());
    ASSERT_LT(size, sequence.request->max_total_tokens);
    ASSERT_EQ(item.first, beam->planned);
    ASSERT_GE(item.count, 1);
    ASSERT_LE(item.first + item.count, size);
    ASSERT_EQ(item.samples, item.first + item.count == size);
    ASSERT_TRUE(!item.samples || item.count == 1) << "a beam samples behind a recomputation";
    ASSERT_EQ(item.is_context, !item.samples);
    ASSERT_LE(kv_cache_.blocks_for(item.first + item.count),
              static_cast<int>(kv_cache_.block_table(item.table).size()));
    ASSERT_TRUE(seen_beams_.insert({item.id, item.lane}).second) << "twice in a step";
    beam->planned += item.count;
    ++sequence.in_flight;
    tally_.forks += item.moved;
    tally_.beams_recomputed += item.is_context;
  }

  void check_budgets(const Scheduler::Step& step) {
    int tokens = 0;
    for (const Scheduler::Item& item : step.items) tokens += item.count;
    ASSERT_EQ(tokens, step.num_tokens);
    ASSERT_LE(tokens, setup_.scheduler.max_num_tokens);
    int running = 0;
    for (const auto& [id, sequence] : live_) running += sequence.planned >= 0 ? sequence.request->beam_width : 0;
    for (const Scheduler::Item& item : step.items) running += item.admitted ? live_.at(item.id).request->beam_width : 0;
    ASSERT_LE(running, setup_.scheduler.max_batch_size);
  }

  void check_item(const Scheduler::Item& item, const std::vector<KvBlockCopy>& copies) {
    Live& sequence = live_.at(item.id);
    ASSERT_FALSE(sequence.ended);
    if (sequence.beams.spread() && item.first >= static_cast<int>(sequence.request->prompt.size()))
      return check_beam_item(item, sequence);
    ASSERT_LT(sequence.in_flight, setup_.scheduler.plan_ahead ? 2 : 1);
    const int known = static_cast<int>(scheduler_.tokens(item.id).size());
    const int size = known + sequence.samples_in_flight;
    ASSERT_LT(size, sequence.request->max_total_tokens);
    ASSERT_EQ(item.admitted, sequence.planned < 0);
    if (item.admitted) take_admission(item, sequence, size, copies);
    if (testing::Test::HasFatalFailure()) return;
    ASSERT_EQ(item.first, sequence.planned);
    ASSERT_EQ(item.slot, sequence.slot);
    ASSERT_GE(item.count, 1);
    const int drafts = static_cast<int>(item.drafts.size());
    ASSERT_EQ(sequence.drafts_in_flight, 0);
    ASSERT_LE(item.first + item.count - drafts, size);
    const bool ends = item.first + item.count - drafts == size;
    ASSERT_EQ(item.samples, ends && !sequence.beams.spread());
    ASSERT_TRUE(item.samples || drafts == 0);
    ASSERT_LT(item.first + item.count, sequence.request->max_total_tokens);
    if (item.samples && known == static_cast<int>(sequence.request->prompt.size()) && sequence.samples_in_flight == 0)
      tally_.drafts_cut += drafts < static_cast<int>(sequence.request->drafts.size());
    sequence.drafts_in_flight = drafts;
    ASSERT_EQ(item.is_context, item.first < sequence.context_end);
    ASSERT_TRUE(ends || setup_.scheduler.enable_chunked_context) << "a context was cut";
    ASSERT_TRUE(item.first < known || sequence.request->plan_ahead) << "planned ahead of an unknown token";
    ASSERT_LE(kv_cache_.blocks_for(item.first + item.count), static_cast<int>(kv_cache_.block_table(item.id).size()));
    ASSERT_TRUE(item.first < known || item.count == 1) << "more than one token is unknown";
    ASSERT_TRUE(seen_in_step_.insert(item.id).second) << "twice in a step";
    tally_.chunks += !item.samples;
    tally_.pending_tokens += item.first >= known;
    tally_.chunks_ahead += sequence.in_flight > 0 && item.first < known;
    sequence.planned += item.count;
    ++sequence.in_flight;
    sequence.samples_in_flight += item.samples;
  }

  void take_admission(const Scheduler::Item& item, Live& sequence, int size, const std::vector<KvBlockCopy>& copies) {
    const KvCacheManager::Admission& admission = item.admission;
    const int block_size = setup_.kv.block_size;
    const int shared = admission.reused_tokens / block_size, partial = admission.reused_tokens % block_size;
    ASSERT_LT(admission.reused_tokens, size);
    ASSERT_EQ(admission.reused_blocks, shared + (partial > 0));
    ASSERT_EQ(shared + admission.new_blocks, kv_cache_.blocks_for(size));
    ASSERT_TRUE(admission.reused_tokens == 0 || (setup_.kv.enable_reuse && sequence.request->reuse_prefix));
    const bool copied = std::any_of(copies.begin(), copies.end(), [&](const KvBlockCopy& copy) {
      return copy.to == KvMemory::kDevice && copy.destination == kv_cache_.block_table(item.id)[shared] &&
             copy.num_tokens == partial;
    });
    ASSERT_TRUE(partial == 0 || copied);
    for (const auto& [id, other] : live_) ASSERT_NE(other.slot, item.slot) << "slot taken twice";
    check_not_overtaking(item.id);
    sequence.planned = admission.reused_tokens;
    sequence.slot = item.slot;
    sequence.context_end = size;
    tally_.copies += partial > 0;
    tally_.shared_blocks += shared;
  }

  /// Nobody of higher rank may still wait when a sequence is admitted.
  void check_not_overtaking(SequenceId id) {
    const Live& sequence = live_.at(id);
    for (const auto& [other_id, other] : live_) {
      if (other.planned >= 0 || other_id == id || other.ended) continue;
      ASSERT_FALSE(outranks(other, sequence)) << "sequence " << id << " overtakes " << other_id;
    }
  }

  void check_order(const Scheduler::Step& step) {
    const auto is_context = [](const Scheduler::Item& item) { return item.is_context; };
    ASSERT_TRUE(std::is_partitioned(step.items.begin(), step.items.end(), std::not_fn(is_context)));
  }

  /// The device runs steps in order, each at any time between its planning and its completion.
  void execute_through(size_t count) {
    for (size_t i = 0; i < count; ++i) {
      if (!steps_[i].executed) device_.execute(steps_[i]);
    }
  }

  void complete_oldest() {
    execute_through(1);
    if (testing::Test::HasFatalFailure()) return;
    const SimulatedStep step = std::move(steps_.front());
    steps_.pop_front();
    std::map<SequenceId, std::map<int, uint64_t>> beams;
    for (size_t i = 0; i < step.work.size(); ++i) {
      const Scheduler::Item& item = step.work[i].item;
      const std::vector<TokenId>& sampled = step.sampled[i];
      ASSERT_EQ(item.samples, !sampled.empty());
      Live& sequence = live_.at(item.id);
      scheduler_.complete(item, sequence.has_beams() ? std::vector<TokenId>() : sampled);
      const int refused = item.drafts.empty() ? 0 : static_cast<int>(item.drafts.size() - (sampled.size() - 1));
      tally_.drafts_refused += refused;
      tally_.drafts_accepted += static_cast<int64_t>(item.drafts.size()) - refused;
      sequence.planned -= refused;
      if (!item.drafts.empty()) sequence.drafts_in_flight = 0;
      --sequence.in_flight;
      if (item.samples && sequence.has_beams()) beams[item.id][item.lane] = step.digests[i];
      if (!sequence.beams.spread()) sequence.samples_in_flight -= item.samples;
      if (sequence.ended) {
        if (sequence.in_flight == 0) remove(item.id);
      } else if (!sequence.has_beams() && static_cast<int>(scheduler_.tokens(item.id).size()) >= sequence.length) {
        tally_.wasted += sequence.in_flight;
        ++tally_.completed;
        finish(item.id);
      }
    }
    for (const auto& [id, digests] : beams) continue_beams(id, digests);
  }

  void continue_beams(SequenceId id, const std::map<int, uint64_t>& digests) {
    const auto found = live_.find(id);
    if (found == live_.end() || found->second.ended) return;
    SimulatedBeams& search = found->second.beams;
    if (search.size() + 1 < found->second.length)
      return search.choose(digests, [&](const auto& choices) { return scheduler_.continue_beams(id, choices); });
    ++tally_.completed;
    finish(id);
  }

  void remove(SequenceId id) {
    ASSERT_FALSE(scheduler_.contains(id));
    ASSERT_TRUE(ended_.insert(id).second) << "sequence " << id << " ended twice";
    live_.erase(id);
  }

  /// What the sequence has is what it would have alone.
  void check_tokens(SequenceId id) {
    const std::span<const TokenId> found = scheduler_.tokens(id);
    const Scheduler::NewSequence& request = *live_.at(id).request;
    const auto wanted = continuation(request.prompt, found.size(), setup_.vocabulary, id, request.kv_policy.get());
    ASSERT_TRUE(std::ranges::equal(found, wanted)) << "sequence " << id << " has other tokens than alone";
    SimulatedBeams& search = live_.at(id).beams;
    if (!live_.at(id).has_beams()) return;
    const auto beams = search.alone(search.size());
    ASSERT_EQ(beams.size(), search.beams().size());
    for (size_t i = 0; i < beams.size(); ++i)
      ASSERT_EQ(search.beams()[i].tokens, beams[i]) << "beam " << i << " of sequence " << id;
  }

  void check_end() {
    ASSERT_EQ(ended_.size(), workload_.arrivals.size());
    ASSERT_EQ(scheduler_.counts().waiting + scheduler_.counts().running, 0);
    const KvCacheManager::Stats stats = kv_cache_.stats();
    ASSERT_EQ(stats.free_blocks, stats.max_blocks);
    ASSERT_EQ(stats.used_blocks, 0);
    tally_.evictions += stats.evicted_blocks;
    tally_.offloads += stats.offloaded_blocks;
    tally_.onboards += stats.onboarded_blocks;
    kv_cache_.clear_cache();
    kv_cache_.check_invariants();
    ASSERT_EQ(kv_cache_.stats().cached_blocks, 0);
    ASSERT_EQ(kv_cache_.stats().used_host_blocks, 0);
  }

  const Workload workload_;
  const Setup& setup_;
  std::mt19937_64 random_;
  Tally& tally_;
  KvCacheManager kv_cache_;
  Scheduler scheduler_;
  SimulatedDevice device_;
  std::map<SequenceId, Live> live_;
  std::set<SequenceId> seen_in_step_;
  std::set<std::pair<SequenceId, int>> seen_beams_;
  std::set<SequenceId> ended_;
  std::deque<SimulatedStep> steps_;
  size_t arrived_ = 0;
  int64_t now_ms_ = 0;
  SequenceId last_highest_ = 0;
  int steps_without_highest_ = 0;
};

}  // namespace inflight
