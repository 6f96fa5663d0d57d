#include "backend/text/text_parameters.h"

#include <algorithm>
#include <array>
#include <cctype>

#include "backend/parameter_value.h"
#include "inflight/error.h"

namespace inflight::backend {

namespace {

constexpr std::array<std::string_view, 5> kYes = {"true", "1", "t", "y", "yes"};
constexpr std::array<std::string_view, 5> kNo = {"false", "0", "f", "n", "no"};

/// The spellings that preprocessing and postprocessing take.
bool flag(const ParameterValue& value) {
  std::string text = value.text();
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char letter) { return std::tolower(letter); });
  const bool yes = std::find(kYes.begin(), kYes.end(), text) != kYes.end();
  check(yes || std::find(kNo.begin(), kNo.end(), text) != kNo.end(), ErrorCode::kInvalidArgument, "parameter ",
        value.key(), " is '", value.text(), "'; wanted true, 1, t, y, yes, false, 0, f, n or no");
  return yes;
}

void refuse(const ParameterValue& value, TextParameters&) {
  throw Error(ErrorCode::kUnsupported, concat("parameter ", value.key(), " is not supported; leave it out"));
}

struct Row {
  std::string_view key;
  void (*store)(const ParameterValue&, TextParameters&);
};

const Row kRows[] = {
    {"tensorrt_llm_model_name", [](const ParameterValue& v, TextParameters& p) { p.engine_name = v.text(); }},
    {"tensorrt_llm_draft_model_name",
     [](const ParameterValue& v, TextParameters& p) { p.draft_engine_name = v.text(); }},
    {"accumulate_tokens", [](const ParameterValue& v, TextParameters& p) { p.accumulate_tokens = flag(v); }},
    {"multimodal_encoders_name", refuse},
    {"tokenizer_dir", [](const ParameterValue& v, TextParameters& p) { p.tokenizer_dir = v.text(); }},
    {"add_special_tokens", [](const ParameterValue& v, TextParameters& p) { p.add_special_tokens = flag(v); }},
    {"skip_special_tokens", [](const ParameterValue& v, TextParameters& p) { p.skip_special_tokens = flag(v); }},
    {"tokenizer_processes", [](const ParameterValue& v, TextParameters& p) { p.processes = v.small_integer(1); }},
    {"tokenizer_python", [](const ParameterValue& v, TextParameters& p) { p.python = v.text(); }},
};

void store(const Row& row, const ParameterTexts& texts, TextParameters& parameters) {
  const auto found = texts.find(row.key);
  if (found == texts.end()) return;
  const ParameterValue value(found->first, found->second);
  if (!value.text().empty() && !value.is_unfilled()) row.store(value, parameters);
}

}  // namespace

TextParameters parse_text_parameters(const ParameterTexts& texts) {
  TextParameters parameters;
  for (const Row& row : kRows) store(row, texts, parameters);
  return parameters;
}

void take_tokenizer(const ParameterTexts& preprocessing, const ParameterTexts& postprocessing, TextParameters& taken) {
  for (const Row& row : kRows) {
    if (row.key == "tokenizer_dir" || row.key == "add_special_tokens") store(row, preprocessing, taken);
    if (row.key == "skip_special_tokens") store(row, postprocessing, taken);
  }
}

}  // namespace inflight::backend
