#pragma once

#include "inflight_batcher/api/request.h"
#include "inflight_batcher/engine/step.h"
#include "inflight_batcher/executor/request_state.h"

namespace inflight {

/// Refuses a table or ids that do not fit the network or the prompt (kInvalidArgument, with both numbers).
void check_prompt_tuning(const PromptTuning& tuning, size_t prompt_tokens, int hidden_size);

/// Ids that the prompt may use beyond the vocabulary.
int virtual_tokens_of(const PromptTuning& tuning);

/// How many leading tokens of the prompt can be told from those of other tables.
int shareable_tokens_of(const Request& request, int vocabulary);

/// Adds the item's virtual tokens to the step, once its tokens are packed from `first_row` on.
void add_virtual_tokens(Step& step, const SequenceState& sequence, const Scheduler::Item& item, size_t first_row);

}  // namespace inflight
