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
  uint64_t arrival = 0;

  int slot = -1;        // -1 while waiting
  int computed = 0;     // leading tokens in the KV cache
  int context_end = 0;  // tokens known at the last admission: up to here computing is context
  int blocks = 0;       // in its table
  int reserved = 0;     // blocks it may still ask for (guaranteed_no_evict)
  bool in_flight = false;
  bool finished = false;  // in flight, to be dropped at complete()

  int size() const { return static_cast<int>(tokens.size()); }
  int pending() const { return size() - computed; }
  bool in_context() const { return computed < context_end; }
  bool has_all_tokens() const { return size() >= max_total_tokens; }
  bool is_idle() const { return !in_flight && !has_all_tokens(); }
};

/// Higher priority first, then earlier arrival.
struct HigherRank {
  bool operator()(const ScheduledSequence* a, const ScheduledSequence* b) const {
    return a->priority != b->priority ? a->priority > b->priority : a->arrival < b->arrival;
  }
};

}  // namespace inflight
