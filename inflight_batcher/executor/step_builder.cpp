#include "inflight_batcher/executor/step_builder.h"

#include <algorithm>

#include "inflight_batcher/executor/prompt_tuning.h"
#include "inflight_batcher/executor/request_checks.h"

namespace inflight {

namespace {

int num_drafts(const Scheduler::Item& item) { return static_cast<int>(item.drafts.size()); }

void pack_tokens(Step& step, const Scheduler::Item& item, std::span<const TokenId> tokens, int32_t sequence) {
  const int known = static_cast<int>(tokens.size());
  for (int i = item.first; i < item.first + item.count; ++i) {
    const bool guessed = i >= known && i - known < num_drafts(item);
    step.token_ids.push_back(i < known ? tokens[i] : guessed ? item.drafts[i - known] : Step::kPendingToken);
    step.positions.push_back(i);
    step.token_sequences.push_back(sequence);
  }
  step.query_offsets.push_back(static_cast<int32_t>(step.token_ids.size()));
  step.context_lengths.push_back(item.first + item.count);
  step.max_query_length = std::max(step.max_query_length, item.count);
  step.max_context_length = std::max(step.max_context_length, item.first + item.count);
}

// A device that keeps the slots' tokens itself never sees those whose keys and values were found in the cache.
void add_history(Step& step, const Scheduler::Item& item, std::span<const TokenId> tokens, const SamplingRow& row) {
  const bool reads_history = row.repetition_penalty != 1.0f || row.presence_penalty != 0.0f ||
                             row.frequency_penalty != 0.0f || row.no_repeat_ngram_size > 0 || !row.bad_words.empty();
  if ((item.admitted || item.moved) && item.first > 0 && reads_history)
    step.histories.push_back({item.slot, tokens.first(static_cast<size_t>(item.first))});
}

void pack_block_tables(Step& step, const std::vector<Scheduler::Item>& items, const KvCacheManager& kv_cache) {
  // Only the blocks that the step reads or writes: a table may already reach further.
  for (const Scheduler::Item& item : items)
    step.table_width = std::max(step.table_width, kv_cache.blocks_for(item.first + item.count));
  step.block_tables.assign(items.size() * step.table_width, 0);
  for (size_t i = 0; i < items.size(); ++i) {
    const std::span<const int32_t> table = kv_cache.block_table(items[i].table);
    const size_t count = std::min<size_t>(table.size(), step.table_width);
    std::copy_n(table.begin(), count, step.block_tables.begin() + i * step.table_width);
  }
}

int last_row(const Step& step, size_t item) { return step.query_offsets[item + 1] - 1; }

// The row behind `draft` drafts of the item, which stands in front of the next one.
void add_sampling_row(StepInFlight& flight, size_t index, int draft, std::span<const TokenId> history, int pending) {
  Step& step = flight.step;
  const Scheduler::Item& item = flight.plan.items[index];
  const SequenceState& sequence = *flight.sequences[index];
  const Request& request = sequence.request->request;
  SamplingRow& row = step.sampling.emplace_back(sequence.sampling);
  row.history = history;
  row.pending = pending;
  for (int i = 0; i < draft; ++i) decay_top_p(row, request.sampling, item.drafts[i]);
  if (!request.draft_logits.empty() && draft < num_drafts(item)) {
    const size_t vocabulary = request.draft_logits.size() / request.draft_tokens.size();
    row.draft_logits = std::span(request.draft_logits).subspan(draft * vocabulary, vocabulary);
    row.draft_token = item.drafts[draft];
    row.draft_threshold = request.draft_acceptance_threshold.value_or(0.0f);
  }
  step.logits_rows.push_back(last_row(step, index) - num_drafts(item) + draft);

  const bool at_prompt_end = item.first + item.count - num_drafts(item) == sequence.prompt_length();
  const bool context = sequence.output().context_logits && draft == 0 && at_prompt_end;
  const bool generation = sequence.output().generation_logits;
  step.return_logits.push_back(context || generation);
  if (context || generation) flight.logits_uses.push_back({static_cast<int>(index), context, generation, draft});
}

void add_sampling_rows(StepInFlight& flight, const Scheduler& scheduler) {
  for (size_t i = 0; i < flight.plan.items.size(); ++i) {
    const Scheduler::Item& item = flight.plan.items[i];
    if (!item.samples) continue;
    const std::span<const TokenId> tokens = scheduler.tokens(item);
    if (item.drafts.empty()) {
      add_sampling_row(flight, i, 0, tokens, item.first + item.count - static_cast<int>(tokens.size()));
      continue;
    }
    std::vector<TokenId>& history = flight.draft_histories.emplace_back(tokens.begin(), tokens.end());
    history.insert(history.end(), item.drafts.begin(), item.drafts.end());
    for (int draft = 0; draft <= num_drafts(item); ++draft)
      add_sampling_row(flight, i, draft, std::span(history).first(tokens.size() + draft), 0);
  }
}

// The prompt's other rows, each once: a recomputation after a pause does not return them again.
void add_context_rows(StepInFlight& flight) {
  Step& step = flight.step;
  for (size_t i = 0; i < flight.plan.items.size(); ++i) {
    const Scheduler::Item& item = flight.plan.items[i];
    const SequenceState& sequence = *flight.sequences[i];
    if (!sequence.output().context_logits) continue;
    const int stop =
        std::min(item.first + item.count, sequence.prompt_length()) - (item.samples && !sequence.context_done);
    for (int token = std::max(item.first, sequence.context_logits_rows); token < stop; ++token) {
      step.logits_rows.push_back(step.query_offsets[i] + token - item.first);
      step.return_logits.push_back(1);
      flight.logits_uses.push_back({static_cast<int>(i), true, false});
    }
  }
}

}  // namespace

void build_step(StepInFlight& flight, const Scheduler& scheduler, const KvCacheManager& kv_cache) {
  Step& step = flight.step;
  step.clear();
  flight.logits_uses.clear();
  flight.draft_histories.clear();
  flight.candidates_taken = 0;
  step.query_offsets.push_back(0);
  for (size_t i = 0; i < flight.plan.items.size(); ++i) {
    const Scheduler::Item& item = flight.plan.items[i];
    const size_t first_row = step.token_ids.size();
    pack_tokens(step, item, scheduler.tokens(item), static_cast<int32_t>(i));
    add_virtual_tokens(step, *flight.sequences[i], item, first_row);
    add_history(step, item, scheduler.tokens(item), flight.sequences[i]->sampling);
    step.slots.push_back(item.slot);
    step.num_generation += item.count == 1 && !item.is_context;
    step.return_captures |= !flight.sequences[i]->output().additional_outputs.empty();
  }
  step.copies = flight.plan.copies;
  pack_block_tables(step, flight.plan.items, kv_cache);
  add_sampling_rows(flight, scheduler);
  add_context_rows(flight);
}

}  // namespace inflight
