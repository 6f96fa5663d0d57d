#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "inflight/ops/attention.h"
#include "inflight/ops/sampling.h"

namespace inflight {

/// The leading tokens of a sequence that takes a slot with part of its keys and values in the cache already: no step
/// brings these tokens to a device that keeps the history of every slot itself. Borrowed until the step has run.
struct HistoryFill {
  int slot = 0;
  std::span<const int32_t> tokens;
};

/// One step on its way through the ranks: the packed description that all of them read, and what the last stage
/// answers. The caller keeps it alive and untouched from Engine::submit to Engine::wait; vectors are cleared, not
/// freed, for reuse.
struct Step {
  /// In token_ids: the token that the step before sampled for the sequence; only the device knows it yet.
  static constexpr int32_t kPendingToken = -1;

  // T tokens of S sequences, as BatchView describes them.
  std::vector<int32_t> token_ids;
  std::vector<int32_t> positions;
  std::vector<int32_t> token_sequences;
  std::vector<int32_t> query_offsets;
  std::vector<int32_t> context_lengths;
  std::vector<int32_t> slots;         // by sequence: its row of per-sequence state, stable while it runs
  std::vector<int32_t> block_tables;  // [S, table_width]
  int table_width = 0;
  int max_query_length = 0;
  int max_context_length = 0;
  int num_generation = 0;              // leading sequences that generate: one new token each
  std::vector<KvBlockCopy> copies;     // run before anything else of the step
  std::vector<HistoryFill> histories;  // of admissions whose sampling reads the history; before the step's tokens

  // Virtual tokens: where they stand in token_ids, ascending, and the embeddings that they stand for ([hidden size],
  // borrowed until the step has run). Their ids lie beyond the vocabulary.
  std::vector<int32_t> virtual_tokens;
  std::vector<const float*> virtual_rows;

  // Rows of which logits are computed: first those that sample, then those that are only returned.
  std::vector<int32_t> logits_rows;
  std::vector<SamplingRow> sampling;   // one for each of the leading rows
  std::vector<uint8_t> return_logits;  // by row of logits_rows
  bool return_captures = false;

  // Answers.
  std::vector<int32_t> tokens;            // by sampling row
  std::vector<float> log_probs;           // by sampling row
  std::vector<int32_t> candidate_tokens;  // of the sampling rows that ask for some, row behind row
  std::vector<float> candidate_log_probs;
  std::vector<float> logits;                           // [rows with return_logits, vocabulary], in row order
  std::map<std::string, std::vector<float>> captures;  // marked output (".layerN" appended in layers) -> [T, width]
  bool failed = false;
  int ranks_left = 0;

  void clear();
};

}  // namespace inflight
