#include "backend/text/beam_row.h"

#include <numeric>
#include <span>

namespace inflight::backend {

namespace {

/// Leaves a stop word's beam its first `generated` tokens.
void cut(BeamResult& beam, size_t generated) {
  beam.finish_reason = FinishReason::kStopWords;
  const auto before = static_cast<size_t>(beam.num_generated_tokens);
  if (generated == before) return;
  beam.tokens.resize(beam.tokens.size() - (before - generated));
  beam.generation_logits.resize(beam.generation_logits.size() / before * generated);
  beam.num_generated_tokens = static_cast<int>(generated);
  if (beam.log_probs.empty()) return;
  beam.log_probs.resize(generated);
  beam.cum_log_prob = std::accumulate(beam.log_probs.begin(), beam.log_probs.end(), 0.0f);
}

}  // namespace

bool BeamRow::take(Result& result, std::vector<std::string>& texts) {
  for (BeamResult& beam : result.beams) texts.push_back(text_of(beam, result.sequence_final));
  ended_ = result.sequence_final;
  if (result.beams.empty()) return true;
  const BeamResult& best = result.beams.front();
  result.num_generated_tokens = best.num_generated_tokens;
  if (ended_ && best.finish_reason == FinishReason::kStopWords) result.finish_reason = FinishReason::kStopWords;
  return true;
}

std::string BeamRow::text_of(BeamResult& beam, bool end) const {
  const std::span<const TokenId> tokens(beam.tokens);
  const auto generated = tokens.last(static_cast<size_t>(beam.num_generated_tokens));
  const std::unique_ptr<TokenStream> stream = open_stream_();
  StopText stop(form_.stop_words);
  std::string text;
  stream->push(tokens.first(tokens.size() - generated.size()), false, text);
  const size_t at_once = form_.stop_words.empty() ? generated.size() : 1;
  for (size_t taken = 0; taken < generated.size();) {
    std::string piece;
    stream->push(generated.subspan(taken, at_once), end && taken + at_once == generated.size(), piece);
    taken += at_once;
    if (!stop.push(piece, static_cast<int>(taken) >= form_.min_tokens, text)) continue;
    cut(beam, taken);
    return text;
  }
  if (end) stop.finish(text);
  return text;
}

}  // namespace inflight::backend
