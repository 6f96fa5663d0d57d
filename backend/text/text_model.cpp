#include "backend/text/text_model.h"

#include <algorithm>

#include "backend/text/beam_row.h"
#include "backend/text/tokenizer_messages.h"
#include "backend/text/worker_stream.h"
#include "backend/triton.h"

namespace inflight::backend {

namespace {

/// A search must know the stop words: a hypothesis that ends with one competes with those that go on.
bool has_token_stop_words(const ParsedRow& row) { return row.request.sampling.beam_width > 1; }

/// The row's texts that become token ids, in the order of the answer: the prompt, bad, stop and bias words.
template <typename Visit>
void for_each_text(const ParsedRow& row, bool add_special_tokens, Visit&& visit) {
  const auto visit_all = [&](const std::vector<std::string>& words) {
    for (const std::string& word : words) visit(word, false);
  };
  visit(row.texts.prompt, add_special_tokens);
  visit_all(row.texts.bad_words);
  if (has_token_stop_words(row)) visit_all(row.texts.stop_words);
  visit_all(row.texts.bias_words);
}

/// So many of the answer's lists, empty ones left out.
std::vector<std::vector<TokenId>> take_words(TokenizerAnswer& answer, size_t count) {
  std::vector<std::vector<TokenId>> words;
  for (size_t i = 0; i < count; ++i) {
    std::vector<TokenId> word = answer.ids();
    if (!word.empty()) words.push_back(std::move(word));
  }
  return words;
}

void add_bias(const std::vector<TokenId>& word, float weight, int vocabulary, std::vector<float>& bias) {
  bias.resize(static_cast<size_t>(vocabulary));
  for (const TokenId id : word) {
    check(id < vocabulary, ErrorCode::kInvalidArgument, "input embedding_bias_words holds token ", id,
          ", which is outside the vocabulary of ", vocabulary, " tokens");
    bias[static_cast<size_t>(id)] += weight;
  }
}

/// The id at each virtual token, 0 at the others.
std::vector<uint64_t> extra_ids(const std::vector<TokenId>& tokens, uint64_t id, int vocabulary) {
  std::vector<uint64_t> ids(tokens.size());
  std::transform(tokens.begin(), tokens.end(), ids.begin(),
                 [&](TokenId token) { return token >= vocabulary ? id : 0; });
  return ids;
}

void take_row(TokenizerAnswer& answer, ParsedRow& row, int vocabulary) {
  Request& request = row.request;
  const RowTexts& texts = row.texts;
  request.input_ids = answer.ids();
  check(!request.input_ids.empty(), ErrorCode::kInvalidArgument,
        "the prompt (text_input) gives 0 tokens; wanted at least 1");
  if (texts.prompt_table_extra_id != 0)
    request.prompt_tuning.extra_ids = extra_ids(request.input_ids, texts.prompt_table_extra_id, vocabulary);
  request.bad_words = take_words(answer, texts.bad_words.size());
  if (has_token_stop_words(row)) request.stop_words = take_words(answer, texts.stop_words.size());
  check(texts.bias_words.size() == texts.bias_weights.size(), ErrorCode::kInvalidArgument,
        "input embedding_bias_words holds ", texts.bias_words.size(), " words, embedding_bias_weights ",
        texts.bias_weights.size(), " weights; wanted as many of each");
  for (const float weight : texts.bias_weights) add_bias(answer.ids(), weight, vocabulary, request.embedding_bias);
}

const TextParameters& checked(const TextParameters& parameters) {
  check(!parameters.tokenizer_dir.empty(), ErrorCode::kInvalidArgument,
        "parameter tokenizer_dir is not filled in; wanted the folder of a tokenizer");
  return parameters;
}

}  // namespace

TextModel::TextModel(const std::string& name, const TextParameters& parameters)
    : parameters_(checked(parameters)),
      pool_({parameters_.python, parameters_.tokenizer_dir, package_of_this_library()}, parameters_.processes),
      table_(parse_token_table(pool_.ask_and_wait(TokenizerRequest('T').take()))),
      decodes_here_(is_proven(table_)) {
  if (decodes_here_) {
    log(LogLevel::kInfo, concat(name, ": decoder ", table_.decoder, ", ", table_.tokens.size(), " tokens"));
  } else {
    log(LogLevel::kWarn, concat(name, ": the tokenizer's decoder (", table_.decoder,
                                ") is decoded by its own library, in another process: slower"));
  }
}

void TextModel::tokenize(const std::vector<ParsedRow>& rows, TokenizerPool::Callback callback) {
  TokenizerRequest request('E');
  int32_t count = 0;
  for (const ParsedRow& row : rows) for_each_text(row, true, [&](const std::string&, bool) { ++count; });
  request.number(count);
  for (const ParsedRow& row : rows) {
    for_each_text(row, parameters_.add_special_tokens,
                  [&](const std::string& text, bool special) { request.number(special).text(text); });
  }
  pool_.ask(request.take(), std::move(callback));
}

void TextModel::take_tokens(const std::string& answer, std::vector<ParsedRow>& rows, int vocabulary) const {
  TokenizerAnswer lists(answer);
  for (size_t index = 0; index < rows.size(); ++index) {
    try {
      take_row(lists, rows[index], vocabulary);
    } catch (const Error& error) {
      if (rows.size() == 1) throw;
      throw Error(error.code(), concat("row ", index, ": ", error.what()));
    }
  }
}

std::unique_ptr<TextAnswer> TextModel::open_row(ParsedRow& row) {
  Request& request = row.request;
  TextRowForm form{.streaming = row.form.streaming,
                   .accumulates = parameters_.accumulate_tokens,
                   .min_tokens = request.sampling.min_tokens,
                   .stop_words = std::move(row.texts.stop_words)};
  if (request.sampling.beam_width > 1)
    return std::make_unique<BeamRow>(std::move(form), [this] { return open_stream(); });
  // Not streaming, the engine would go on to its own end, stop word or not; so it streams to here. So do drafted
  // answers.
  if (!form.streaming && (!form.stop_words.empty() || row.drafting.num_draft_tokens > 0)) {
    request.output.streaming = true;
    if (row.form.includes_input) form.prompt = request.input_ids;
  }
  std::vector<std::unique_ptr<TokenStream>> streams;
  for (int i = 0; i < request.sampling.num_return_sequences; ++i) streams.push_back(open_stream());
  return std::make_unique<TextRow>(std::move(form), std::move(streams));
}

std::unique_ptr<TokenStream> TextModel::open_stream() {
  if (decodes_here_) return std::make_unique<TableStream>(table_, parameters_.skip_special_tokens);
  return std::make_unique<WorkerStream>(pool_, parameters_.skip_special_tokens);
}

}  // namespace inflight::backend
