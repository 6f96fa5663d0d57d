#pragma once

#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "inflight_batcher/scheduler/capacity_check.h"
#include "inflight_batcher/scheduler/scheduler.h"
#include "inflight_batcher/scheduler/sequence.h"

namespace inflight {

/// scheduler.cpp has the sequences' lives, step_planner.cpp the decisions, beam_planner.cpp what is
/// different with beams, scheduler_invariants.cpp the checks.
class Scheduler::Impl {
 public:
  Impl(const Config& config, KvCacheManager& kv_cache);

  std::unique_ptr<Impl> fresh() const { return std::make_unique<Impl>(config_, kv_cache_); }
  void add(NewSequence added);
  void plan_into(Step& step);
  void complete(const Item& item, std::span<const TokenId> sampled);
  std::vector<int> continue_beams(SequenceId id, std::span<const BeamChoice> choices);
  void finish(SequenceId id);
  std::span<const TokenId> tokens(SequenceId id) const;
  std::span<const TokenId> tokens(const Item& item) const;
  bool contains(SequenceId id) const;
  Counts counts() const {
    return {static_cast<int>(waiting_.size()), static_cast<int>(running_.size()),
            config_.max_batch_size - static_cast<int>(free_slots_.size())};
  }
  void check_invariants() const;

 private:
  using Sequence = ScheduledSequence;
  using Running = std::vector<Sequence*>;

  bool is_guaranteed() const { return config_.policy == CapacityPolicy::kGuaranteedNoEvict; }
  Sequence& at_slot(const Item& item) const;
  Running::iterator place_of(const Sequence& sequence);
  void mark_computed(Sequence& sequence);
  void leave(Sequence& sequence);
  void release_if_landed(Sequence& sequence);

  // beam_planner.cpp
  bool can_advance_beams(const Sequence& sequence) const;
  void plan_beams(Sequence& sequence, Step& step);
  bool lay_out(Sequence& sequence, Step& step);
  int blocks_to_lay_out(const ScheduledBeams& beams) const;
  void drop_tables(Sequence& sequence, bool sources);
  void take_tables(Sequence& sequence);
  void plan_recomputation(Sequence& sequence, Step& step);
  void push_beam(Sequence& sequence, int lane, int count, Step& step);
  void complete_beam(Sequence& sequence, const Item& item);
  void take_slots(Sequence& sequence);
  void leave_beams(Sequence& sequence);
  void check_beams(const Sequence& sequence) const;

  // step_planner.cpp
  size_t share_of_one_step() const;
  bool has_room(const Step& step) const;
  bool can_advance(const Sequence& sequence) const;
  void plan_generation(Step& step);
  void plan_contexts(Step& step);
  int chunk_of(const Sequence& sequence, const Step& step) const;
  Item& push_item(Sequence& sequence, int count, Step& step);
  Item& push_context(Sequence& sequence, Step& step);
  int room_for_drafts(Sequence& sequence, const Step& step);
  void note_blocks(Sequence& sequence, int blocks);
  bool grow(Sequence& sequence, Step& step);
  Sequence* lowest_pausable_below(const Sequence& sequence) const;
  void pause(Sequence& sequence, Step& step);
  bool make_room(const Sequence& sequence, int blocks, Step& step);
  void hold_back_below(const Sequence& sequence, int blocks);
  int headroom() const;
  int capacity_wanted(const Sequence& sequence) const;
  int blocks_wanted(const Sequence& sequence) const;
  bool has_budget(const Sequence& sequence, const Step& step) const;
  bool has_blocks(const Sequence& sequence);
  bool admit(Sequence& sequence, Step& step);

  // scheduler_invariants.cpp
  void check_running(const Sequence& sequence) const;

  const Config config_;
  const CapacityCheck capacity_;
  const int block_size_;
  const int items_limit_;  // of one sequence in flight
  KvCacheManager& kv_cache_;
  std::unordered_map<SequenceId, Sequence> sequences_;
  std::set<Sequence*, HigherRank> waiting_;
  Running running_;                 // sorted by rank; not the finished ones still in flight
  std::vector<Sequence*> by_slot_;  // null: the slot is free
  std::vector<int> free_slots_;
  int reserved_ = 0;        // sum over the running ones
  int leaving_blocks_ = 0;  // of the finished ones still in flight
  uint64_t next_arrival_ = 1;
  uint64_t refused_arrival_ = 0;
  int refused_blocks_ = 0;

  // Of the step being planned.
  Running contexts_;
  size_t max_items_ = 0;
  size_t num_candidates_ = 0;  // leading running ones; those behind are held back
  int refused_growths_ = 0;    // blocks
  int landing_blocks_ = 0;     // will be had when those that leave or are held back have landed
};

}  // namespace inflight
