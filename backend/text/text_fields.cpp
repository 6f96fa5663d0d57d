#include "backend/text/text_fields.h"

#include <algorithm>
#include <utility>

#include "backend/text/utf8.h"

namespace inflight::backend {

namespace {

using Use = RequestField::Use;
using Value = const RowValue&;
using Row = RowRequest&;

std::vector<std::string> checked_texts(Value value) {
  std::vector<std::string> texts = value.texts();
  for (const std::string& text : texts) {
    const size_t malformed = find_malformed_utf8(text);
    check(malformed == std::string::npos, ErrorCode::kInvalidArgument, "input ", value.name(), " is not UTF-8 at byte ",
          malformed, " of ", text.size());
  }
  return texts;
}

void store_prompt(Value value, Row row) {
  std::vector<std::string> texts = checked_texts(value);
  check(texts.size() == 1, ErrorCode::kInvalidArgument, "input ", value.name(), " has ", texts.size(),
        " texts a row; wanted one");
  row.texts.prompt = std::move(texts.front());
}

void store_num_draft_tokens(Value value, Row row) {
  const auto count = value.scalar<int32_t>();
  check(count >= 0, ErrorCode::kInvalidArgument, "num_draft_tokens is ", count, ", wanted 0 or more");
  row.drafting.num_draft_tokens = count;
}

const RequestField kTextFields[] = {
    {"text_input", DataType::kBytes, Use::kStore, store_prompt},
    {"bad_words", DataType::kBytes, Use::kStore, [](Value v, Row r) { r.texts.bad_words = checked_texts(v); }},
    {"stop_words", DataType::kBytes, Use::kStore, [](Value v, Row r) { r.texts.stop_words = checked_texts(v); }},
    {"embedding_bias_words", DataType::kBytes, Use::kStore,
     [](Value v, Row r) { r.texts.bias_words = checked_texts(v); }},
    {"embedding_bias_weights", DataType::kFp32, Use::kStore,
     [](Value v, Row r) { r.texts.bias_weights = v.values<float>(); }},
    {"num_draft_tokens", DataType::kInt32, Use::kStore, store_num_draft_tokens},
    {"use_draft_logits", DataType::kBool, Use::kStore, [](Value v, Row r) { r.drafting.use_draft_logits = v.flag(); }},
    {"image_input", DataType::kFp16, Use::kLater},
    {"image_bytes_input", DataType::kUint8, Use::kLater},
    {"image_url_input", DataType::kBytes, Use::kLater},
    {"video_bytes_input", DataType::kUint8, Use::kLater},
    {"decoder_text_input", DataType::kBytes, Use::kLaterIfNonzero},
    {"prompt_table_extra_id", DataType::kUint64, Use::kStore,
     [](Value v, Row r) { r.texts.prompt_table_extra_id = v.scalar<uint64_t>(); }},
};

/// The ensemble's names of tensors that the engine model calls otherwise.
constexpr std::pair<std::string_view, std::string_view> kEngineNames[] = {
    {"max_tokens", "request_output_len"},
    {"stream", "streaming"},
    {"top_k", "runtime_top_k"},
    {"top_p", "runtime_top_p"},
    {"length_penalty", "len_penalty"},
    {"top_p_min", "runtime_top_p_min"},
    {"top_p_decay", "runtime_top_p_decay"},
    {"top_p_reset_ids", "runtime_top_p_reset_ids"},
};

/// What the backend makes of the texts itself.
constexpr std::string_view kHidden[] = {"input_ids",       "input_lengths",         "request_output_len",
                                        "stop_words_list", "bad_words_list",        "embedding_bias",
                                        "streaming",       "prompt_table_extra_ids"};

}  // namespace

const RequestField* find_text_field(std::string_view name) {
  const auto* field =
      std::find_if(std::begin(kTextFields), std::end(kTextFields), [&](auto& it) { return it.name == name; });
  if (field != std::end(kTextFields)) return field;
  const auto* renamed =
      std::find_if(std::begin(kEngineNames), std::end(kEngineNames), [&](auto& it) { return it.first == name; });
  if (renamed != std::end(kEngineNames)) return find_field(renamed->second);
  const bool hidden = std::find(std::begin(kHidden), std::end(kHidden), name) != std::end(kHidden);
  return hidden ? nullptr : find_field(name);
}

}  // namespace inflight::backend
