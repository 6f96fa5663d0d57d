#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "inflight/error.h"
#include "inflight_batcher/api/request.h"

namespace inflight {

/// Numbers as the executor interface of the field has them.
enum class FinishReason { kNotFinished = 0, kEndId = 1, kStopWords = 2, kLength = 3, kTimedOut = 4, kCancelled = 5 };

/// "stop" (end id or stop words), "length", "timeout", "cancelled" or "" while unfinished.
const char* name_of(FinishReason reason);

/// A marked output of one sequence: a row for each token that was computed, in order (the last token sampled is not).
struct MarkedOutput {
  int width = 0;
  std::vector<float> values;  // [tokens, width]
};

/// One hypothesis of a beam search.
struct BeamResult {
  std::vector<TokenId> tokens;  // all of it in every result, behind the prompt where the input is not excluded
  FinishReason finish_reason = FinishReason::kNotFinished;
  int num_generated_tokens = 0;
  std::vector<float> log_probs;          // of the generated tokens, after penalties, bans and temperature
  float cum_log_prob = 0.0f;             // their sum, an end id's with them
  float score = 0.0f;                    // cum_log_prob / length^length_penalty
  std::vector<float> generation_logits;  // [generated tokens, vocabulary]
};

/// Filled in when OutputConfig::perf_metrics is set. Times are nanoseconds of the steady clock.
struct PerfMetrics {
  int kv_alloc_new_blocks = 0;    // prompt blocks allocated at admission and not shared
  int kv_alloc_total_blocks = 0;  // as the contract counts them: all allocated at admission, reused ones apart
  int kv_reused_blocks = 0;       // whole and partial blocks taken from the prefix tree
  int64_t arrival_time_ns = 0;
  int64_t first_scheduled_time_ns = 0;
  int64_t first_token_time_ns = 0;
  int64_t last_token_time_ns = 0;
  int draft_tokens = 0;           // verified
  int accepted_draft_tokens = 0;  // of them, those that are part of the answer
};

/// A piece of the answer to one sequence of a request: new tokens, or an error. Results of one sequence arrive in
/// order; exactly one of them is final; after it nothing follows.
struct Result {
  RequestId request_id = 0;
  int sequence_index = 0;       // 0 .. num_return_sequences - 1
  bool sequence_final = false;  // last result of this sequence
  bool request_final = false;   // last result of the whole request
  FinishReason finish_reason = FinishReason::kNotFinished;
  std::vector<TokenId> tokens;         // streaming: new since the last result; else all of them
  std::vector<TokenId> prefix_tokens;  // the generated tokens just before `tokens`, at most OutputConfig::prefix_tokens
  int num_prompt_tokens = 0;
  int num_generated_tokens = 0;          // of the sequence so far
  std::vector<float> log_probs;          // of the generated tokens in `tokens`
  float cum_log_prob = 0.0f;             // of the sequence so far
  std::vector<float> context_logits;     // [prompt, vocabulary], in the first result
  std::vector<float> generation_logits;  // [generated tokens in this result, vocabulary]
  /// With beam_width > 1 the best hypotheses so far, at most beam_width, best first. The fields above are then those of
  /// the first (but for its logits).
  std::vector<BeamResult> beams;
  /// The marked outputs asked for (".layerN" appended in layers), in the final result.
  std::map<std::string, MarkedOutput> additional_outputs;
  PerfMetrics perf;

  /// Set when the sequence failed (always with sequence_final). Cancellation is a failure (kCancelled), a time-out is
  /// not: it ends the sequence with the tokens it has. A cancelled sequence that does not stream carries its tokens,
  /// too.
  bool failed = false;
  ErrorCode error_code = ErrorCode::kInternal;
  std::string error;
};

}  // namespace inflight
