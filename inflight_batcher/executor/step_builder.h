#pragma once

#include <memory>
#include <vector>

#include "inflight_batcher/engine/step.h"
#include "inflight_batcher/executor/request_state.h"

namespace inflight {

/// A step under way: what was planned, what runs, and whom its answers belong to.
struct StepInFlight {
  Scheduler::Step plan;
  std::vector<std::shared_ptr<SequenceState>> sequences;  // by item; keeps alive what the sampler's spans point into
  Step step;

  /// Rows whose logits are returned, in the order of step.logits.
  struct LogitsUse {
    int item = 0;
    bool context = false;
    bool generation = false;
  };
  std::vector<LogitsUse> logits_uses;
};

/// Packs the planned items: tokens, positions, block tables, rows to sample and rows to return.
void build_step(StepInFlight& flight, const Scheduler& scheduler, const KvCacheManager& kv_cache);

}  // namespace inflight
