#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "inflight_batcher/api/retention.h"

namespace inflight {

using RequestId = uint64_t;
using TokenId = int32_t;

/// How tokens are chosen. The defaults mean greedy. Ranges are checked by Executor::submit, which names the field.
struct SamplingConfig {
  int beam_width = 1;            // > 1 is UNSUPPORTED so far
  int num_return_sequences = 1;  // independent samples of one prompt; their prompt's KV blocks are shared
  float temperature = 1.0f;      // 0 = greedy
  int top_k = 0;                 // 0 = not given. Neither top_k nor top_p given: greedy (the contract's normalisation)
  float top_p = 0.0f;            // <= 0 = not given
  float min_p = 0.0f;
  uint64_t seed = 0;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  int no_repeat_ngram_size = 0;  // 0 = off
  int min_tokens = 1;            // least number of generated tokens (so an answer is never empty by default)
};

/// What a result carries besides tokens.
struct OutputConfig {
  bool streaming = false;     // a result per step instead of one at the end
  bool exclude_input = true;  // false: a non-streaming result starts with the prompt
  bool log_probs = false;
  bool context_logits = false;  // turns prefix reuse off for the request: every prompt row is computed
  bool generation_logits = false;
  bool perf_metrics = false;
  std::vector<std::string> additional_outputs;  // marked outputs of the plan; turns prefix reuse off for the request
  int prefix_tokens = 0;  // results carry up to so many tokens before the chunk, for a stateless detokenizer
};

/// One prompt to continue.
struct Request {
  std::vector<TokenId> input_ids;
  int max_tokens = 0;  // most new tokens, >= 1; cut to what the sequence limit leaves
  SamplingConfig sampling;
  OutputConfig output;
  std::optional<TokenId> end_id;                 // ends the sequence and is no part of it. One of the checkpoint's
                                                 // end ids stands for them all; absent or outside the vocabulary: none
  std::vector<std::vector<TokenId>> stop_words;  // the matching token sequence is part of the output
  std::vector<std::vector<TokenId>> bad_words;   // token sequences never generated
  std::vector<float> embedding_bias;             // [vocabulary] added to the logits, or empty
  RetentionConfig retention;                     // of its KV blocks
  float priority = 0.5f;                         // 0..1, higher first; equal: first come, first served
  /// What another model thinks will follow the prompt: verified in the step that computes the prompt's end, as far as
  /// max_tokens - 1, the step's token budget and the KV blocks allow. Without logits, the leading ones that equal what
  /// would be sampled anyway are accepted: drafts never change the answer. With them, a draft of probability q is
  /// accepted with probability min(1, p / q), p being its probability here; the draft model is taken to have sampled
  /// with the same SamplingConfig. Either way one token more is sampled. Beam width 1.
  std::vector<TokenId> draft_tokens;
  std::vector<float> draft_logits;                  // [draft_tokens, vocabulary], or empty
  std::optional<float> draft_acceptance_threshold;  // (0, 1]: with draft_logits, accept if p >= threshold · q instead
  std::chrono::microseconds timeout{0};             // from submission; 0 = none. What is there then is the answer
};

}  // namespace inflight
