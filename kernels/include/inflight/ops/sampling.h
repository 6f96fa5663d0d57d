#pragma once

#include <cstdint>
#include <span>

#include "inflight/device.h"
#include "inflight/tensor.h"

namespace inflight {

/// One row of logits to turn into one token. All spans are borrowed for the call.
/// Order: bias, penalties, bans (bad words, repeated n-grams, too-early ends), temperature, top-k, top-p, min-p, draw.
struct SamplingRow {
  float temperature = 1.0f;          // 0 means greedy
  int top_k = 0;                     // 0 = whole vocabulary
  float top_p = 1.0f;                // nucleus (Holtzman et al. 2019): smallest set whose probability reaches top_p
  float min_p = 0.0f;                // drops tokens less likely than min_p · the likeliest (Nguyen et al. 2024)
  float repetition_penalty = 1.0f;   // logit > 0: divided, else multiplied, for every token seen (Keskar et al. 2019)
  float presence_penalty = 0.0f;     // subtracted once for every token seen, ignored ones aside
  float frequency_penalty = 0.0f;    // subtracted per occurrence, in prompt and generated tokens, ignored ones aside
  int prompt_ignore_length = 0;      // so many leading prompt tokens are ignored by these two; more than it has: all
  int no_repeat_ngram_size = 0;      // 0 = off; else no n-gram of history occurs twice
  int min_tokens = 0;                // least number of generated tokens, end ids not counted, stop words counted
  std::span<const int32_t> end_ids;  // banned while fewer than min_tokens are generated, pending ones counted
  uint64_t seed = 0;
  uint64_t stream = 0;               // which of several returned sequences: a different random stream of the same seed
  std::span<const int32_t> history;  // prompt and generated tokens
  int pending = 0;                   // tokens behind history that only the device knows yet: 0, or 1 one step ahead
  int prompt_length = 0;             // how many of history are prompt
  std::span<const float> bias;       // added to the logits, [V] or empty
  std::span<const int32_t> bad_words;       // token ids of all words end to end
  std::span<const int32_t> bad_word_ends;   // cumulative end of each word in bad_words
  std::span<const int32_t> stop_token_ids;  // one-token stop words: banned where one would end below min_tokens
  bool want_log_prob = false;

  /// Speculation: the place of this row holds `draft_token`, drawn from these logits under this same row. With p the
  /// row's probability of it and q the draft's, it is taken with probability min(1, p / q), or with a threshold if
  /// p >= threshold · q; else the token is drawn from what p has above q (Leviathan et al. 2023).
  std::span<const float> draft_logits;  // [V], or empty: the row samples as any other
  int32_t draft_token = -1;
  float draft_threshold = 0.0f;  // 0 = none
  int num_candidates = 0;  // > 0: a beam, whose best tokens are wanted instead of one: best_candidates takes the row

  /// The first place of history that the presence and frequency penalties count.
  int penalised_from() const { return prompt_ignore_length < prompt_length ? prompt_ignore_length : prompt_length; }
  /// Whether the draft's logits decide: for a greedy row they say no more than the token does.
  bool verifies_draft() const { return !draft_logits.empty() && temperature != 0 && top_k != 1; }
};

/// tokens[i] from logits[i] under rows[i]. The draw uses a counter-based generator keyed by (seed, stream, number of
/// tokens generated, pending ones counted), so that a request's tokens do not depend on the rest of the batch. Greedy
/// ties go to the lowest id. log_probs[i] = log softmax of the logits as the model gave them (before bias, penalties
/// and temperature) at the token.
struct SampleArgs {
  TensorView logits;                  // [L, V] float32, overwritten
  std::span<const SamplingRow> rows;  // L
  std::span<int32_t> tokens;          // L out
  std::span<float> log_probs;         // L out (rows that did not ask, and beams, get 0)
};

/// What best_candidates gives of a row at most.
inline constexpr int kMaxCandidates = 256;

/// The best continuations of beams: of each row with num_candidates its so many likeliest tokens, best first, equal
/// ones by lower id, with the log softmax of (logits after bias, penalties and bans) / temperature (0 counts as 1).
/// Top-k, top-p, min-p and the seed have no effect. Rows without num_candidates are left alone. Where the vocabulary is
/// smaller than num_candidates, the rest is token -1 with -inf; banned tokens have -inf too.
struct CandidatesArgs {
  TensorView logits;                  // [L, V] float32, overwritten in the rows that are taken
  std::span<const SamplingRow> rows;  // L
  std::span<int32_t> tokens;          // [sum of num_candidates] out, row behind row
  std::span<float> log_probs;         // the same
};

}  // namespace inflight
