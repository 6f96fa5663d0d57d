#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/request_parser.h"
#include "backend/text/text_parameters.h"
#include "backend/text/text_row.h"
#include "backend/text/token_table.h"
#include "backend/text/tokenizer_pool.h"

namespace inflight::backend {

/// The tokenizer of a model that takes and gives texts. Prompts are tokenized by processes, once a request; answers are
/// decoded here, token by token, where the tokenizer's decoder is of a kind that allows it.
class TextModel {
 public:
  /// Starts the processes. Throws kInvalidArgument for what is no tokenizer. `name`: the model's, for the log.
  TextModel(const std::string& name, const TextParameters& parameters);

  std::optional<TokenId> end_id() const { return table_.end_id; }

  /// Tokenizes prompts and words of all rows; the answer is for take_tokens.
  void tokenize(const std::vector<ParsedRow>& rows, TokenizerPool::Callback callback);

  /// Puts the token ids of the answer into the rows' requests. Throws kInvalidArgument: no tokens in a prompt, weights
  /// that do not belong to words, words outside the vocabulary.
  void take_tokens(const std::string& answer, std::vector<ParsedRow>& rows, int vocabulary) const;

  /// What becomes of the row's results; sets in its request how the engine has to deliver them.
  std::unique_ptr<TextAnswer> open_row(ParsedRow& row);

 private:
  std::unique_ptr<TokenStream> open_stream();

  const TextParameters parameters_;
  TokenizerPool pool_;
  TokenTable table_;
  bool decodes_here_ = false;  // by the table; else the processes decode
};

}  // namespace inflight::backend
