#pragma once

#include <cstdint>
#include <vector>

#include "inflight_batcher/scheduler/scheduler.h"

namespace inflight {

/// What the scheduler knows of one sequence.
struct ScheduledSequence {
  SequenceId id = 0;
  std::vector<TokenId> tokens;  // prompt and generated
  int max_total_tokens = 0;
  float priority = 0.5f;
  bool reuse_prefix = true;
  KvCacheManager::PolicyPtr kv_policy;
  std::vector<TokenId> drafts;  // not computed yet, or in flight
  uint64_t arrival = 0;

  int slot = -1;              // -1 while waiting
  int computed = 0;           // leading tokens in the KV cache
  int planned = 0;            // the same when the items in flight are complete
  int items_in_flight = 0;    // steps under way that it is in
  int samples_in_flight = 0;  // how many of those will each give it a token
  int drafts_in_flight = 0;   // guesses among the tokens planned
  int reused = 0;             // tokens found in the cache at the last admission
  int context_end = 0;        // tokens known at the last admission: up to here computing is context
  int blocks = 0;             // in its table
  int reserved = 0;           // blocks it may still ask for (guaranteed_no_evict)
  bool finished = false;      // in flight, to be dropped when the last item completes

  int size() const { return static_cast<int>(tokens.size()); }
  int expected_size() const { return size() + drafts_in_flight + samples_in_flight; }
  int pending() const { return expected_size() - planned; }
  bool in_flight() const { return items_in_flight > 0; }
  bool in_context() const { return planned < context_end; }
  bool has_all_tokens() const { return expected_size() >= max_total_tokens; }
};

/// Higher priority first, then earlier arrival.
struct HigherRank {
  bool operator()(const ScheduledSequence* a, const ScheduledSequence* b) const {
    return a->priority != b->priority ? a->priority > b->priority : a->arrival < b->arrival;
  }
};

}  // namespace inflight
