#include "inflight_batcher/engine/step.h"

namespace inflight {

void Step::clear() {
  for (auto* numbers : {&token_ids, &positions, &token_sequences, &query_offsets, &context_lengths, &slots,
                        &block_tables, &logits_rows, &tokens, &candidate_tokens})
    numbers->clear();
  virtual_tokens.clear();
  virtual_rows.clear();
  copies.clear();
  histories.clear();
  sampling.clear();
  return_logits.clear();
  log_probs.clear();
  candidate_log_probs.clear();
  logits.clear();
  captures.clear();
  table_width = max_query_length = max_context_length = num_generation = 0;
  return_captures = failed = false;
}

}  // namespace inflight
