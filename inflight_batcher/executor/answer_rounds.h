#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "inflight_batcher/api/drafted_answer.h"

namespace inflight {

/// What an answer that is made in rounds has so far, and what its next round asks of the two models. Not thread-safe.
class AnswerRounds {
 public:
  /// Throws kInvalidArgument or kUnsupported for what cannot be made in rounds. Does not check what the target checks.
  AnswerRounds(Request request, const DraftingConfig& config, const Executor& target, const Executor& draft);

  /// A request with the target's view of the first round, to be checked before anything is asked.
  Request example() const;

  /// How many tokens the draft model is to propose now; 0: it is not to be asked.
  int drafts_wanted() const;
  Request draft_request() const;
  void take_drafts(Result&& result);

  /// The target answers the rest in one request.
  void draft_no_more() { draft_no_more_ = true; }

  /// With the drafts taken, which are gone then.
  Request target_request();

  /// Makes a result of the target's that of the whole answer; it is final where the answer ends.
  void take(Result& result);

  bool expired() const { return std::chrono::steady_clock::now() >= deadline_; }

  /// Final results between two rounds.
  Result timed_out() const;
  Result failed(ErrorCode code, const std::string& why) const;

  /// Gives a result of a failure the answer's numbers.
  void describe(Result& result) const;

 private:
  int num_generated() const { return static_cast<int>(request_.input_ids.size()) - num_prompt_; }
  std::chrono::microseconds time_left() const;
  void fit_to_draft_vocabulary(Request& request) const;
  void append(const std::vector<TokenId>& tokens);
  std::vector<TokenId> last_generated() const;
  void join(PerfMetrics& round);

  Request request_;  // input_ids: the prompt and what was generated; max_tokens: what is left
  DraftingConfig config_;
  int num_prompt_;
  int draft_vocabulary_, target_vocabulary_;
  int longest_prompt_;  // that the target takes
  bool draft_no_more_ = false;
  int64_t arrival_ns_;
  std::chrono::steady_clock::time_point deadline_ = std::chrono::steady_clock::time_point::max();

  std::vector<TokenId> draft_tokens_;
  std::vector<float> draft_logits_;  // [draft_tokens_, vocabulary], or empty

  RequestId request_id_ = 0;
  float cum_log_prob_ = 0.0f;
  PerfMetrics perf_;
};

}  // namespace inflight
