#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "inflight_batcher/scheduler/scheduler.h"

namespace inflight {

/// The beams of a beam search, each in a lane: a slot and a table of KV blocks. A beam that is continued by several
/// tokens stays in its lane with the first of them; the others fork off into the lanes of beams that ended.
struct ScheduledBeams {
  struct Lane {
    int slot = -1;
    std::vector<TokenId> tokens;  // prompt and generated; empty: no beam
    int computed = 0;
    int planned = 0;
    bool has_table = false;
    int source = -1;     // the lane it is yet to be forked off; -1: its table is its own
    bool moved = false;  // forked since its last step: its slot has not seen these tokens

    bool lives() const { return !tokens.empty(); }
    int pending() const { return static_cast<int>(tokens.size()) - planned; }
  };

  std::vector<Lane> lanes;  // as many as beams are wanted
  bool spread = false;      // the first beams have been chosen
  bool laid_out = false;    // every living lane has a table with room for all its tokens

  int width() const { return static_cast<int>(lanes.size()); }
  int living() const {
    return static_cast<int>(std::count_if(lanes.begin(), lanes.end(), [](const Lane& lane) { return lane.lives(); }));
  }
  /// Tokens of each living beam; they always have the same number.
  int size() const {
    const auto found = std::find_if(lanes.begin(), lanes.end(), [](const Lane& lane) { return lane.lives(); });
    return found == lanes.end() ? 0 : static_cast<int>(found->tokens.size());
  }
};

/// What the scheduler knows of one sequence. With beams, these numbers are those of the prompt, which is computed once
/// in the first lane.
struct ScheduledSequence {
  SequenceId id = 0;
  std::vector<TokenId> tokens;  // prompt and generated; with beams the prompt
  int max_total_tokens = 0;
  float priority = 0.5f;
  bool reuse_prefix = true;
  KvCacheManager::PolicyPtr kv_policy;
  std::vector<TokenId> drafts;  // not computed yet, or in flight
  bool plan_ahead = true;
  std::unique_ptr<ScheduledBeams> beams;  // null: none
  uint64_t arrival = 0;

  int slot = -1;              // -1 while waiting
  int computed = 0;           // leading tokens in the KV cache
  int planned = 0;            // the same when the items in flight are complete
  int items_in_flight = 0;    // steps under way that it is in
  int samples_in_flight = 0;  // how many of those will each give it a token
  int drafts_in_flight = 0;   // guesses among the tokens planned
  int reused = 0;             // tokens found in the cache at the last admission
  int context_end = 0;        // tokens known at the last admission: up to here computing is context
  int blocks = 0;             // in its table, or distinct ones in the tables of all its beams
  int reserved = 0;           // blocks it may still ask for (guaranteed_no_evict)
  bool finished = false;      // in flight, to be dropped when the last item completes

  int size() const { return static_cast<int>(tokens.size()); }
  int known() const { return has_beams() ? beams->size() : size(); }
  int expected_size() const { return size() + drafts_in_flight + samples_in_flight; }
  int pending() const { return expected_size() - planned; }
  int width() const { return beams ? beams->width() : 1; }
  bool has_beams() const { return beams && beams->spread; }
  bool in_flight() const { return items_in_flight > 0; }
  bool in_context() const { return planned < context_end; }
  bool has_all_tokens() const { return (has_beams() ? known() : expected_size()) >= max_total_tokens; }
};

/// Higher priority first, then earlier arrival.
struct HigherRank {
  bool operator()(const ScheduledSequence* a, const ScheduledSequence* b) const {
    return a->priority != b->priority ? a->priority > b->priority : a->arrival < b->arrival;
  }
};

}  // namespace inflight
