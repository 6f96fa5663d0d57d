#include <utility>

#include "inflight_batcher/executor/executor_impl.h"

namespace inflight {

void Executor::Impl::start_beams(SequenceState& sequence) {
  const RequestState& request = *sequence.request;
  sequence.beams = std::make_unique<BeamState>(BeamSearch::Rules{request.request.sampling, request.request.max_tokens,
                                                                 request.end_ids, request.request.stop_words});
  sequence.sampling.num_candidates = sequence.beams->search.candidates_wanted(kMaxCandidates);
}

void Executor::Impl::handle_beam(StepInFlight& flight, size_t index) {
  const Scheduler::Item& item = flight.plan.items[index];
  const SequencePtr& sequence = flight.sequences[index];
  BeamState& beams = *sequence->beams;
  if (item.samples) {
    const size_t row = flight.sampled[index].first_row;
    take_candidates(flight, item, flight.step.sampling[row].num_candidates, beams);
  }
  scheduler_.complete(item, std::nullopt);
  if (sequence->finished || beams.answers.size() < beams.lanes.size()) return;
  continue_beams(sequence);
}

// The answers lie still in the step while its items are handled; the beams of a sequence are all in the same one.
void Executor::Impl::take_candidates(StepInFlight& flight, const Scheduler::Item& item, int count, BeamState& beams) {
  BeamSearch::Candidates& candidates = beams.answers[item.lane];
  candidates.tokens = std::span(flight.step.candidate_tokens).subspan(flight.candidates_taken, count);
  candidates.log_probs = std::span(flight.step.candidate_log_probs).subspan(flight.candidates_taken, count);
  flight.candidates_taken += count;
  const auto logits = beams.logits.find(item.lane);
  if (logits == beams.logits.end()) return;
  candidates.logits = std::make_shared<const std::vector<float>>(std::move(logits->second));
  beams.logits.erase(logits);
}

void Executor::Impl::continue_beams(const SequencePtr& sequence) {
  BeamState& beams = *sequence->beams;
  sequence->context_done = true;
  if (sequence->perf.first_token_time_ns == 0) sequence->perf.first_token_time_ns = step_end_ns_;
  sequence->perf.last_token_time_ns = step_end_ns_;
  counters_.tokens_generated += static_cast<int64_t>(beams.lanes.size());

  std::vector<BeamSearch::Candidates> candidates;
  for (const int lane : beams.lanes) candidates.push_back(std::move(beams.answers.at(lane)));
  beams.answers.clear();
  if (!beams.search.advance(candidates)) return end_sequence(sequence, FinishReason::kNotFinished);
  std::vector<Scheduler::BeamChoice> choices;
  for (const BeamSearch::Choice& choice : beams.search.choices())
    choices.push_back({beams.lanes[choice.parent], choice.token});
  beams.lanes = scheduler_.continue_beams(sequence->id, choices);
  if (sequence->output().streaming) emit_beams(sequence, FinishReason::kNotFinished);
}

// All beams as they are now: a step may have changed any of them. `reason` is that of beams which have none of their
// own.
Result& Executor::Impl::emit_beams(const SequencePtr& sequence, FinishReason reason) {
  const BeamSearch& search = sequence->beams->search;
  Result& result = emit(sequence);
  std::vector<BeamSearch::Hypothesis> best = search.best();
  if (best.empty()) best.emplace_back();  // ended before its first token
  for (BeamSearch::Hypothesis& hypothesis : best) {
    if (hypothesis.finish_reason == FinishReason::kNotFinished) hypothesis.finish_reason = reason;
    result.beams.push_back(beam_result(*sequence, std::move(hypothesis)));
  }
  const BeamResult& first = result.beams[0];
  result.finish_reason = search.has_ended() ? first.finish_reason : reason;
  result.tokens = first.tokens;
  result.num_generated_tokens = first.num_generated_tokens;
  result.log_probs = first.log_probs;
  result.cum_log_prob = first.cum_log_prob;
  result.context_logits = std::exchange(sequence->context_logits, {});
  if (sequence->output().perf_metrics) result.perf = sequence->perf;
  return result;
}

BeamResult Executor::Impl::beam_result(const SequenceState& sequence, BeamSearch::Hypothesis hypothesis) const {
  const OutputConfig& output = sequence.output();
  BeamResult beam;
  beam.finish_reason = hypothesis.finish_reason;
  beam.num_generated_tokens = static_cast<int>(hypothesis.tokens.size());
  if (!output.streaming && !output.exclude_input) beam.tokens = sequence.request->request.input_ids;
  beam.tokens.insert(beam.tokens.end(), hypothesis.tokens.begin(), hypothesis.tokens.end());
  if (output.log_probs) beam.log_probs = std::move(hypothesis.log_probs);
  beam.cum_log_prob = static_cast<float>(hypothesis.sum);
  beam.score = static_cast<float>(hypothesis.score);
  for (const auto& row : hypothesis.logits)
    beam.generation_logits.insert(beam.generation_logits.end(), row->begin(), row->end());
  return beam;
}

}  // namespace inflight
