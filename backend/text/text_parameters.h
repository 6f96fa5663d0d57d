#pragma once

#include <string>

#include "backend/model_config.h"

namespace inflight::backend {

/// The parameters of config.pbtxt that only a model with texts has.
///
/// | key                           | default      | meaning                                                         |
/// |-------------------------------|--------------|-----------------------------------------------------------------|
/// | tokenizer_dir                 | see below    | folder with tokenizer.json, or an engine folder made from one   |
/// | add_special_tokens            | true         | the prompt gets the tokens that the tokenizer puts around texts |
/// | skip_special_tokens           | true         | special tokens leave no text in the output                      |
/// | tokenizer_processes           | 2            | processes that tokenize prompts                                 |
/// | tokenizer_python              | python3      | their interpreter                                               |
/// | tensorrt_llm_model_name       | tensorrt_llm | the engine model: to share the executor and the metrics with    |
/// |                               |              | or, without a gpt_model_path, to work with                      |
/// | tensorrt_llm_draft_model_name | none         | an engine model whose guesses the engine verifies               |
/// | accumulate_tokens             | false        | each streamed response holds the whole text so far              |
/// | multimodal_encoders_name      | none         | UNSUPPORTED                                                     |
///
/// Without a tokenizer_dir, a model without an engine of its own takes that of other models (`take_tokenizer`); any
/// other is not loaded.
struct TextParameters {
  std::string engine_name = "tensorrt_llm";
  std::string draft_engine_name;
  bool accumulate_tokens = false;
  std::string tokenizer_dir;
  bool add_special_tokens = true;
  bool skip_special_tokens = true;
  int processes = 2;
  std::string python = "python3";
};

/// Throws kInvalidArgument for a value that cannot be read, kUnsupported for what this version lacks. Values left as an
/// unfilled "${...}" or empty keep their default.
TextParameters parse_text_parameters(const ParameterTexts& parameters);

/// The tokenizer's parameters as the models preprocessing and postprocessing have them, for a model without a
/// tokenizer_dir of its own.
void take_tokenizer(const ParameterTexts& preprocessing, const ParameterTexts& postprocessing, TextParameters& taken);

}  // namespace inflight::backend
