#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/text/detokenizer.h"
#include "backend/text/stop_text.h"
#include "inflight_batcher/api/result.h"

namespace inflight::backend {

/// One sequence of a row: its tokens become text until a stop word, its end id or its limit ends it.
struct TextSequence {
  std::unique_ptr<TokenStream> stream;
  StopText stop;
  bool ended = false;
  Result whole;      // not streaming: all so far
  std::string text;  // so far, where it is said again or at the end only
};

/// How a row of a request wants its texts.
struct TextRowForm {
  bool streaming = false;       // a result for each of the engine's, else one for each sequence
  bool accumulates = false;     // streaming: each says the whole text so far
  int min_tokens = 1;           // stop words count from here on
  std::vector<TokenId> prompt;  // what the output begins with; not streaming only
  std::vector<std::string> stop_words;
};

/// Makes the results of one row of a text request from the engine's.
class TextAnswer {
 public:
  virtual ~TextAnswer() = default;

  /// Takes an engine result in. True when there is something to send: `result` and the texts that go with it, one, or
  /// one for each beam.
  virtual bool take(Result& result, std::vector<std::string>& texts) = 0;

  /// The answer has come to its end; the engine may still be at work on it.
  virtual bool ended() const = 0;

  /// That sequence of it has.
  virtual bool has_ended(int sequence_index) const = 0;
};

/// The answer of sequences, which come token by token.
class TextRow : public TextAnswer {
 public:
  /// `streams`: one for each sequence of the row.
  TextRow(TextRowForm form, std::vector<std::unique_ptr<TokenStream>> streams);

  /// Takes an engine result in. True when there is something to send: `result` and the text that goes with it, marked
  /// as final where a stop word has ended the sequence, or the last sequence of the row.
  bool take(Result& result, std::string& text);
  bool take(Result& result, std::vector<std::string>& texts) override { return take(result, texts.emplace_back()); }

  bool ended() const override { return open_ == 0; }
  bool has_ended(int sequence_index) const override { return sequences_.at(static_cast<size_t>(sequence_index)).ended; }

 private:
  bool extend(TextSequence& sequence, Result& result, std::string& text) const;

  TextRowForm form_;
  std::vector<TextSequence> sequences_;
  size_t open_;
};

}  // namespace inflight::backend
