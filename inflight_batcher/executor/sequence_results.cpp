#include <algorithm>

#include "inflight_batcher/executor/executor_impl.h"
#include "inflight_batcher/executor/request_checks.h"

namespace inflight {

namespace {

void append_rows(std::vector<float>& out, const std::vector<float>& values, size_t row, size_t width) {
  out.insert(out.end(), values.begin() + row * width, values.begin() + (row + 1) * width);
}

}  // namespace

// The leading drafts that were sampled in their places.
void Executor::Impl::match_drafts(StepInFlight& flight) {
  flight.sampled.clear();
  size_t row = 0;
  for (const Scheduler::Item& item : flight.plan.items) {
    StepInFlight::Sampled& sampled = flight.sampled.emplace_back();
    sampled.first_row = row;
    const auto found = flight.step.tokens.begin() + static_cast<std::ptrdiff_t>(row);
    const auto differ = std::mismatch(item.drafts.begin(), item.drafts.end(), found).first;
    sampled.accepted = static_cast<size_t>(differ - item.drafts.begin());
    if (item.samples) row += 1 + item.drafts.size();
  }
}

void Executor::Impl::take_logits(StepInFlight& flight) {
  const auto width = static_cast<size_t>(model_.vocabulary_size);
  const auto take = [&](size_t use) {
    const StepInFlight::LogitsUse& wanted = flight.logits_uses[use];
    SequenceState& sequence = *flight.sequences[wanted.item];
    if (sequence.finished) return;
    if (wanted.draft > static_cast<int>(flight.sampled[wanted.item].accepted)) return;
    if (wanted.context) {
      append_rows(sequence.context_logits, flight.step.logits, use, width);
      ++sequence.context_logits_rows;
    }
    if (wanted.generation && sequence.beams)
      append_rows(sequence.beams->logits[flight.plan.items[wanted.item].lane], flight.step.logits, use, width);
    else if (wanted.generation)
      append_rows(sequence.generation_logits, flight.step.logits, use, width);
  };
  // A sampling row is the last of its prompt, but stands in front of the prompt's other rows.
  const size_t sampling =
      std::count_if(flight.step.return_logits.begin(), flight.step.return_logits.begin() + flight.step.sampling.size(),
                    [](uint8_t wanted) { return wanted != 0; });
  for (size_t use = sampling; use < flight.logits_uses.size(); ++use) take(use);
  for (size_t use = 0; use < sampling; ++use) take(use);
}

// Each token once: what a recomputation after a pause gives again is passed over.
void Executor::Impl::take_captures(StepInFlight& flight, size_t index) {
  SequenceState& sequence = *flight.sequences[index];
  const Scheduler::Item& item = flight.plan.items[index];
  const int count = item.count - static_cast<int>(item.drafts.size() - flight.sampled[index].accepted);
  const int known = std::clamp(sequence.marked_rows - item.first, 0, count);
  const size_t tokens = flight.step.token_ids.size();
  for (const auto& [name, values] : flight.step.captures) {
    const std::string base = name.substr(0, name.rfind(".layer"));
    const auto& wanted = sequence.output().additional_outputs;
    if (std::find(wanted.begin(), wanted.end(), base) == wanted.end() &&
        std::find(wanted.begin(), wanted.end(), name) == wanted.end())
      continue;
    const size_t width = values.size() / tokens;
    MarkedOutput& out = sequence.additional_outputs[name];
    out.width = static_cast<int>(width);
    const int first = flight.step.query_offsets[index];
    for (int row = first + known; row < first + count; ++row) append_rows(out.values, values, row, width);
  }
  sequence.marked_rows = std::max(sequence.marked_rows, item.first + count);
}

void Executor::Impl::handle_item(StepInFlight& flight, size_t index) {
  const Scheduler::Item& item = flight.plan.items[index];
  const SequencePtr& sequence = flight.sequences[index];
  if (sequence->beams) return handle_beam(flight, index);
  const auto [first_row, accepted] = flight.sampled[index];
  const size_t count = item.samples ? 1 + accepted : 0;
  const auto tokens = std::span<const TokenId>(flight.step.tokens).subspan(first_row, count);
  if (flight.step.return_captures && !sequence->finished) take_captures(flight, index);
  const int drafts = static_cast<int>(item.drafts.size());
  scheduler_.complete(item, tokens);
  if (tokens.empty() || sequence->finished) return;
  if (!sequence->context_done) {
    sequence->context_done = true;
    if (sequence->index == 0) release_siblings(sequence);
  }
  sequence->perf.draft_tokens += drafts;
  counters_.draft_tokens += drafts;
  accept_tokens(sequence, tokens, std::span<const float>(flight.step.log_probs).subspan(first_row, count));
}

// All but the last one are drafts.
void Executor::Impl::accept_tokens(const SequencePtr& sequence, std::span<const TokenId> tokens,
                                   std::span<const float> log_probs) {
  if (sequence->perf.first_token_time_ns == 0) sequence->perf.first_token_time_ns = step_end_ns_;
  sequence->perf.last_token_time_ns = step_end_ns_;
  FinishReason reason = FinishReason::kNotFinished;
  size_t taken = 0;
  while (taken < tokens.size() && reason == FinishReason::kNotFinished) {
    const bool is_draft = taken + 1 < tokens.size();
    sequence->perf.accepted_draft_tokens += is_draft;
    counters_.accepted_draft_tokens += is_draft;
    ++counters_.tokens_generated;
    reason = accept_token(*sequence, tokens[taken], log_probs[taken]);
    ++taken;
  }
  for (auto& [name, output] : sequence->additional_outputs)  // of drafts behind the end
    output.values.resize(output.values.size() - (tokens.size() - taken) * output.width);
  if (reason != FinishReason::kNotFinished || sequence->request->request.stop_after_drafts)
    return end_sequence(sequence, reason);
  if (sequence->output().streaming) emit_new_tokens(sequence, reason);
}

FinishReason Executor::Impl::accept_token(SequenceState& sequence, TokenId token, float log_prob) {
  const Request& request = sequence.request->request;
  const std::vector<TokenId>& ends = sequence.request->end_ids;
  const int before = request.continued_tokens;
  const bool ends_allowed = before + static_cast<int>(sequence.generated.size()) >= request.sampling.min_tokens;
  if (ends_allowed && std::find(ends.begin(), ends.end(), token) != ends.end()) return FinishReason::kEndId;
  sequence.generated.push_back(token);
  decay_top_p(sequence.sampling, request.sampling, token);
  if (request.output.log_probs) {
    sequence.log_probs.push_back(log_prob);
    sequence.cum_log_prob += log_prob;
  }
  const int count = static_cast<int>(sequence.generated.size());
  if (before + count >= request.sampling.min_tokens && ends_in_stop_word(request, sequence.generated))
    return FinishReason::kStopWords;
  return count >= request.max_tokens ? FinishReason::kLength : FinishReason::kNotFinished;
}

// A result on its way out, to be filled in before the next one.
Result& Executor::Impl::emit(const SequencePtr& sequence) {
  ResponseQueue::Delivery& delivery = outgoing_.emplace_back();
  delivery.request = sequence->request;
  delivery.result.request_id = sequence->request->id;
  delivery.result.sequence_index = sequence->index;
  delivery.result.num_prompt_tokens = sequence->prompt_length();
  delivery.result.num_generated_tokens = static_cast<int>(sequence->generated.size());
  return delivery.result;
}

Result& Executor::Impl::emit_new_tokens(const SequencePtr& sequence_ptr, FinishReason reason) {
  SequenceState& sequence = *sequence_ptr;
  if (sequence.beams) return emit_beams(sequence_ptr, reason);
  const OutputConfig& output = sequence.output();
  Result& result = emit(sequence_ptr);
  result.finish_reason = reason;
  const auto fresh = sequence.generated.begin() + static_cast<std::ptrdiff_t>(sequence.emitted);
  if (!output.streaming && !output.exclude_input) result.tokens = sequence.request->request.input_ids;
  result.tokens.insert(result.tokens.end(), fresh, sequence.generated.end());
  const auto before = std::min<std::ptrdiff_t>(output.prefix_tokens, static_cast<std::ptrdiff_t>(sequence.emitted));
  result.prefix_tokens.assign(fresh - before, fresh);
  if (output.log_probs)
    result.log_probs.assign(sequence.log_probs.begin() + static_cast<std::ptrdiff_t>(sequence.emitted),
                            sequence.log_probs.end());
  result.cum_log_prob = sequence.cum_log_prob;
  result.context_logits = std::exchange(sequence.context_logits, {});
  result.generation_logits = std::exchange(sequence.generation_logits, {});
  // An end id's logits are computed, but the id is no part of the answer.
  result.generation_logits.resize(output.generation_logits ? std::min(result.generation_logits.size(),
                                                                      (sequence.generated.size() - sequence.emitted) *
                                                                          static_cast<size_t>(model_.vocabulary_size))
                                                           : 0);
  if (output.perf_metrics) result.perf = sequence.perf;
  sequence.emitted = sequence.generated.size();
  return result;
}

void Executor::Impl::end_sequence(const SequencePtr& sequence, FinishReason reason) {
  Result& result = emit_new_tokens(sequence, reason);
  result.additional_outputs = std::move(sequence->additional_outputs);
  close_sequence(sequence, result);
}

void Executor::Impl::fail_sequence(const SequencePtr& sequence, ErrorCode code, const std::string& why) {
  // What a cancelled sequence has goes with it; of a stream the client has it already.
  const bool keeps_tokens = code == ErrorCode::kCancelled && !sequence->output().streaming;
  Result& result = keeps_tokens ? emit_new_tokens(sequence, FinishReason::kCancelled) : emit(sequence);
  result.finish_reason = code == ErrorCode::kCancelled ? FinishReason::kCancelled : FinishReason::kNotFinished;
  result.failed = true;
  result.error_code = code;
  result.error = why;
  if (code != ErrorCode::kCancelled) ++counters_.requests_failed;
  close_sequence(sequence, result);
}

// The books of the executor and the scheduler forget the sequence; a step it is still in only drops its answer.
void Executor::Impl::close_sequence(const SequencePtr& sequence, Result& result) {
  RequestState& request = *sequence->request;
  result.sequence_final = true;
  result.request_final = --request.sequences_left == 0;
  sequence->finished = true;
  release_siblings(sequence);
  if (sequence->beams) std::replace(by_slot_.begin(), by_slot_.end(), sequence, SequencePtr());
  if (sequence->slot >= 0 && by_slot_[sequence->slot] == sequence) by_slot_[sequence->slot] = nullptr;
  sequences_.erase(sequence->id);
  if (scheduler_.contains(sequence->id)) scheduler_.finish(sequence->id);
  if (!result.request_final) return;
  if (request.cancelled)
    ++counters_.requests_cancelled;
  else if (!result.failed)
    ++counters_.requests_completed;
  requests_.erase(request.id);
}

}  // namespace inflight
