#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "inflight/ops/sampling.h"
#include "inflight_batcher/api/executor.h"
#include "inflight_batcher/sampling/beam_search.h"
#include "inflight_batcher/scheduler/scheduler.h"

namespace inflight {

inline int64_t steady_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

/// The clock's end where the time-out goes beyond it.
inline std::chrono::steady_clock::time_point deadline_in(std::chrono::microseconds timeout) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point now = Clock::now();
  const auto left = std::chrono::duration_cast<std::chrono::microseconds>(Clock::time_point::max() - now);
  return timeout < left ? now + timeout : Clock::time_point::max();
}

/// A request while it lives: shared by its sequences, by the steps they are in and by results on their way out.
struct RequestState {
  static constexpr char kCancelled[] = "the request was cancelled";

  RequestId id = 0;
  Request request;
  Executor::Callback callback;
  int64_t arrival_ns = 0;
  std::chrono::steady_clock::time_point deadline = std::chrono::steady_clock::time_point::max();
  int sequences_left = 0;
  bool cancelled = false;
  std::string callback_failure;  // what the callback threw; of the thread that delivers to it

  int vocabulary_size = 0;              // ids from here on stand for rows of the prompt table
  KvCacheManager::PolicyPtr kv_policy;  // null: all by default

  std::vector<TokenId> end_ids;  // any of them ends a sequence

  // Word lists laid out as the sampler reads them.
  std::vector<TokenId> bad_words;
  std::vector<int32_t> bad_word_ends;
  std::vector<TokenId> stop_token_ids;  // stop words of one token
};

/// The beams of a sequence: the search, where its running beams are, and what the step at hand brought them.
struct BeamState {
  explicit BeamState(const BeamSearch::Rules& rules) : search(rules) {}

  BeamSearch search;
  std::vector<int> lanes = {0};                   // of the scheduler, by running beam
  std::map<int, BeamSearch::Candidates> answers;  // by lane
  std::map<int, std::vector<float>> logits;       // by lane
};

/// One sequence of a request: what the executor knows beyond the scheduler.
struct SequenceState {
  SequenceId id = 0;
  int index = 0;  // among the request's sequences
  std::shared_ptr<RequestState> request;
  SamplingRow sampling;  // without what changes from step to step
  int slot = -1;         // of its last admission
  bool finished = false;
  bool context_done = false;       // the whole prompt has been computed once
  std::vector<TokenId> generated;  // without an end id
  size_t emitted = 0;              // how many of them results have carried
  std::vector<float> log_probs;    // of generated
  float cum_log_prob = 0.0f;
  int context_logits_rows = 0;  // prompt rows whose logits have been returned
  std::vector<float> context_logits;
  std::vector<float> generation_logits;  // not yet emitted
  int marked_rows = 0;                   // tokens whose marked outputs are in additional_outputs
  std::map<std::string, MarkedOutput> additional_outputs;
  PerfMetrics perf;
  std::unique_ptr<BeamState> beams;  // null: beam width 1; else the tokens and log probs above stay empty

  const OutputConfig& output() const { return request->request.output; }
  int prompt_length() const { return static_cast<int>(request->request.input_ids.size()); }
};

}  // namespace inflight
