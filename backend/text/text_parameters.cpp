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

struct Row {
  const char* key;
  void (*store)(const ParameterValue&, TextParameters&);
};

const Row kRows[] = {
    {"tensorrt_llm_model_name", [](const ParameterValue& v, TextParameters& p) { p.engine_name = v.text(); }},
    {"tokenizer_dir", [](const ParameterValue& v, TextParameters& p) { p.tokenizer_dir = v.text(); }},
    {"add_special_tokens", [](const ParameterValue& v, TextParameters& p) { p.add_special_tokens = flag(v); }},
    {"skip_special_tokens", [](const ParameterValue& v, TextParameters& p) { p.skip_special_tokens = flag(v); }},
    {"tokenizer_processes", [](const ParameterValue& v, TextParameters& p) { p.processes = v.small_integer(1); }},
    {"tokenizer_python", [](const ParameterValue& v, TextParameters& p) { p.python = v.text(); }},
};

}  // namespace

TextParameters parse_text_parameters(const ModelConfig& config) {
  TextParameters parameters;
  for (const Row& row : kRows) {
    const auto found = config.parameters.find(row.key);
    if (found == config.parameters.end()) continue;
    const ParameterValue value(row.key, found->second);
    if (!value.text().empty() && !value.is_unfilled()) row.store(value, parameters);
  }
  check(!parameters.tokenizer_dir.empty(), ErrorCode::kInvalidArgument,
        "parameter tokenizer_dir is not filled in; wanted the folder of a tokenizer");
  return parameters;
}

}  // namespace inflight::backend
