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
    int draft = 0;  // of a row that samples: how many drafts are before it
  };
  std::vector<LogitsUse> logits_uses;

  /// By item: its rows among those that sample, and how many of its drafts they confirmed. Filled in with the answers.
  struct Sampled {
    size_t first_row = 0;
    size_t accepted = 0;
  };
  std::vector<Sampled> sampled;
  std::vector<std::vector<TokenId>> draft_histories;  // prompt and drafts, where there are any
  size_t candidates_taken = 0;                        // of step.candidate_tokens, while the answers are handled
};

/// Packs the planned items: tokens, positions, block tables, rows to sample and rows to return.
void build_step(StepInFlight& flight, const Scheduler& scheduler, const KvCacheManager& kv_cache);

}  // namespace inflight
