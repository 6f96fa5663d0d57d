#include "backend/text/text_row.h"

#include <utility>

namespace inflight::backend {

namespace {

template <typename T>
void append(std::vector<T>& all, const std::vector<T>& more) {
  all.insert(all.end(), more.begin(), more.end());
}

/// One result of what came in pieces: vectors grow, everything else is as the last piece has it.
void merge(Result& whole, Result&& piece) {
  for (auto member : {&Result::log_probs, &Result::generation_logits, &Result::context_logits}) {
    append(whole.*member, piece.*member);
    piece.*member = std::move(whole.*member);
  }
  append(whole.tokens, piece.tokens);
  piece.tokens = std::move(whole.tokens);
  whole = std::move(piece);
}

}  // namespace

TextRow::TextRow(TextRowForm form, std::vector<std::unique_ptr<TokenStream>> streams)
    : form_(std::move(form)), open_(streams.size()) {
  for (auto& stream : streams) {
    TextSequence& sequence = sequences_.emplace_back(TextSequence{std::move(stream), StopText(form_.stop_words)});
    sequence.whole.tokens = form_.prompt;
    sequence.stream->push(form_.prompt, false, sequence.text);
  }
}

bool TextRow::take(Result& result, std::string& text) {
  TextSequence& sequence = sequences_.at(static_cast<size_t>(result.sequence_index));
  if (sequence.ended) return false;
  if (extend(sequence, result, text)) {
    result.finish_reason = FinishReason::kStopWords;
    result.sequence_final = true;
  }
  if (result.sequence_final) {
    sequence.ended = true;
    --open_;
  }
  result.request_final = ended();
  if (form_.streaming && !form_.accumulates) return true;
  sequence.text += std::exchange(text, {});
  if (form_.streaming) {
    text = sequence.text;
    return true;
  }
  merge(sequence.whole, std::move(result));
  if (!sequence.ended) return false;
  result = std::move(sequence.whole);
  text = std::move(sequence.text);
  return true;
}

/// Puts the text that may be sent into `text`; true when a stop word has ended it.
bool TextRow::extend(TextSequence& sequence, Result& result, std::string& text) const {
  std::string decoded;
  sequence.stream->push(result.tokens, result.sequence_final, decoded);
  const bool stopped = sequence.stop.push(decoded, result.num_generated_tokens >= form_.min_tokens, text);
  if (!stopped && result.sequence_final) sequence.stop.finish(text);
  return stopped;
}

}  // namespace inflight::backend
