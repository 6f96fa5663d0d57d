#include "backend/text/text_fields.h"

#include "backend/text/text_parameters.h"
#include "tests/triton/harness.h"

namespace inflight::backend {
namespace {

RowRequest stored(const std::string& name, DataType type, std::vector<int64_t> shape, const std::string& bytes) {
  TRITONBACKEND_Request request{{{name, type, std::move(shape), {bytes}}}};
  RowRequest row;
  store_field(read_input(&request, 0), 0, 1, row, find_text_field);
  return row;
}

RowRequest stored_texts(const std::string& name, const std::vector<std::string>& texts) {
  return stored(name, DataType::kBytes, {1, static_cast<int64_t>(texts.size())}, serialized(texts));
}

TEST(TextFields, Texts) {
  EXPECT_EQ(stored_texts("text_input", {"h\u00e9"}).texts.prompt, "h\u00e9");
  EXPECT_EQ(stored_texts("stop_words", {"a", "", "bc"}).texts.stop_words, (std::vector<std::string>{"a", "", "bc"}));
  EXPECT_EQ(stored_texts("bad_words", {"a"}).texts.bad_words, std::vector<std::string>{"a"});
  EXPECT_EQ(stored_texts("embedding_bias_words", {"a"}).texts.bias_words, std::vector<std::string>{"a"});
  EXPECT_EQ(stored("embedding_bias_weights", DataType::kFp32, {1, 2}, bytes_of<float>({1, -2})).texts.bias_weights,
            (std::vector<float>{1, -2}));
}

TEST(TextFields, TheEnsemblesNames) {
  const auto number = [](const char* name) { return stored(name, DataType::kInt32, {1, 1}, bytes_of<int32_t>({7})); };
  EXPECT_EQ(number("max_tokens").max_tokens, 7);
  EXPECT_EQ(number("top_k").request.sampling.top_k, 7);
  EXPECT_EQ(number("min_tokens").request.sampling.min_tokens, 7);
  EXPECT_EQ(stored("top_p", DataType::kFp32, {1, 1}, bytes_of<float>({0.5f})).request.sampling.top_p, 0.5f);
  EXPECT_TRUE(stored("stream", DataType::kBool, {1, 1}, "\x01").request.output.streaming);
}

TEST(TextFields, ErrorsNameTheInputAsTheClientDoes) {
  expect_error(ErrorCode::kInvalidArgument, "input max_tokens is 0; wanted 1 or more",
               [] { stored("max_tokens", DataType::kInt32, {1, 1}, bytes_of<int32_t>({0})); });
  expect_error(ErrorCode::kInvalidArgument, "input text_input is not UTF-8 at byte 2 of 3",
               [] { stored_texts("text_input", {"ab\xFF"}); });
  expect_error(ErrorCode::kInvalidArgument, "input text_input has 2 texts a row; wanted one",
               [] { stored_texts("text_input", {"a", "b"}); });
  expect_error(ErrorCode::kUnsupported, "input decoder_text_input needs a feature",
               [] { stored_texts("decoder_text_input", {"a"}); });
  expect_error(ErrorCode::kUnsupported, "input input_ids is unknown",
               [] { stored("input_ids", DataType::kInt32, {1, 1}, bytes_of<int32_t>({7})); });
}

TextParameters parsed(const ParameterTexts& parameters) { return parse_text_parameters(parameters); }

TEST(TextParameters, ValuesAndDefaults) {
  const TextParameters defaults = parsed({{"tokenizer_dir", "/t"}, {"tokenizer_python", "${tokenizer_python}"}});
  EXPECT_EQ(defaults.tokenizer_dir, "/t");
  EXPECT_TRUE(defaults.add_special_tokens && defaults.skip_special_tokens);
  EXPECT_EQ(defaults.python, "python3");
  const TextParameters found = parsed({{"tokenizer_dir", "/t"},
                                       {"add_special_tokens", "No"},
                                       {"skip_special_tokens", "f"},
                                       {"tokenizer_processes", "5"},
                                       {"tokenizer_python", "/bin/python"}});
  EXPECT_FALSE(found.add_special_tokens || found.skip_special_tokens);
  EXPECT_EQ(found.processes, 5);
  EXPECT_EQ(found.python, "/bin/python");
}

TEST(TextParameters, OfTheScriptedModel) {
  const TextParameters found = parsed({{"tensorrt_llm_model_name", "big"},
                                       {"tensorrt_llm_draft_model_name", "small"},
                                       {"accumulate_tokens", "yes"},
                                       {"multimodal_encoders_name", "${multimodal_encoders_name}"}});
  EXPECT_EQ(found.engine_name, "big");
  EXPECT_EQ(found.draft_engine_name, "small");
  EXPECT_TRUE(found.accumulate_tokens);
  EXPECT_EQ(found.tokenizer_dir, "");
}

TEST(TextParameters, TheTokenizerOfOtherModels) {
  TextParameters taken = parsed({{"tokenizer_python", "/bin/python"}});
  take_tokenizer({{"tokenizer_dir", "/t"}, {"add_special_tokens", "no"}, {"tokenizer_python", "python2"}},
                 {{"tokenizer_dir", "/other"}, {"skip_special_tokens", "no"}}, taken);
  EXPECT_EQ(taken.tokenizer_dir, "/t");
  EXPECT_FALSE(taken.add_special_tokens || taken.skip_special_tokens);
  EXPECT_EQ(taken.python, "/bin/python");
}

TEST(TextParameters, WhatCannotBeReadIsRefused) {
  expect_error(ErrorCode::kUnsupported, "parameter multimodal_encoders_name is not supported",
               [] { parsed({{"multimodal_encoders_name", "eyes"}}); });
  expect_error(ErrorCode::kInvalidArgument, "parameter skip_special_tokens is 'perhaps'; wanted true",
               [] { parsed({{"tokenizer_dir", "/t"}, {"skip_special_tokens", "perhaps"}}); });
  expect_error(ErrorCode::kInvalidArgument, "parameter tokenizer_processes is '0'",
               [] { parsed({{"tokenizer_dir", "/t"}, {"tokenizer_processes", "0"}}); });
}

}  // namespace
}  // namespace inflight::backend
