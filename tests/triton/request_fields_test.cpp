#include "backend/request_fields.h"

#include "tests/triton/harness.h"

namespace inflight::backend {
namespace {

/// What one row of a request holds after this input.
RowRequest stored(const std::string& name, DataType type, std::vector<int64_t> shape, const std::string& bytes) {
  TRITONBACKEND_Request request{{{name, type, std::move(shape), {bytes}}}};
  RowRequest row;
  store_field(read_input(&request, 0), 0, 1, row);
  return row;
}

RowRequest stored_int(const std::string& name, int32_t value) {
  return stored(name, DataType::kInt32, {1, 1}, bytes_of<int32_t>({value}));
}

RowRequest stored_float(const std::string& name, float value) {
  return stored(name, DataType::kFp32, {1, 1}, bytes_of<float>({value}));
}

RowRequest stored_flag(const std::string& name) {
  return stored(name, DataType::kBool, {1, 1}, bytes_of<uint8_t>({1}));
}

TEST(RequestFields, Prompt) {
  EXPECT_EQ(stored("input_ids", DataType::kInt32, {1, 2}, bytes_of<int32_t>({8, 9})).padded_input_ids,
            (std::vector<TokenId>{8, 9}));
  EXPECT_EQ(stored_int("input_lengths", 2).input_length, 2);
  EXPECT_EQ(stored_int("request_output_len", 7).max_tokens, 7);
}

TEST(RequestFields, Sampling) {
  EXPECT_EQ(stored_float("temperature", 0.5f).request.sampling.temperature, 0.5f);
  EXPECT_EQ(stored_int("runtime_top_k", 40).request.sampling.top_k, 40);
  EXPECT_EQ(stored_float("min_p", 0.1f).request.sampling.min_p, 0.1f);
  EXPECT_EQ(stored_float("repetition_penalty", 1.5f).request.sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(stored_float("presence_penalty", -1).request.sampling.presence_penalty, -1);
  EXPECT_EQ(stored_float("frequency_penalty", 2).request.sampling.frequency_penalty, 2);
  EXPECT_EQ(stored_int("prompt_ignore_length", 7).request.sampling.prompt_ignore_length, 7);
  EXPECT_EQ(stored_int("num_return_sequences", 3).request.sampling.num_return_sequences, 3);
  EXPECT_EQ(stored_float("priority", 0.75f).request.priority, 0.75f);
}

/// Before anything is kept for each of them.
TEST(RequestFields, SequencesAreLimited) {
  EXPECT_EQ(stored_int("num_return_sequences", 1024).request.sampling.num_return_sequences, 1024);
  for (const int wrong : {0, 1025, INT32_MAX})
    expect_error(ErrorCode::kInvalidArgument,
                 "input num_return_sequences is " + std::to_string(wrong) + "; wanted 1 to 1024",
                 [&] { stored_int("num_return_sequences", wrong); });
}

TEST(RequestFields, TopPIsClamped) {
  EXPECT_EQ(stored_float("runtime_top_p", 0.9f).request.sampling.top_p, 0.9f);
  EXPECT_EQ(stored_float("runtime_top_p", 1.5f).request.sampling.top_p, 1.0f);
  EXPECT_EQ(stored_float("runtime_top_p", -0.5f).request.sampling.top_p, 0.0f);
}

TEST(RequestFields, NewAndOldNamesMeanTheSame) {
  for (const char* name : {"min_length", "min_tokens"}) {
    EXPECT_EQ(stored_int(name, 5).request.sampling.min_tokens, 5) << name;
    EXPECT_EQ(stored_int(name, 0).request.sampling.min_tokens, 1) << name;
  }
  for (const char* name : {"seed", "random_seed"}) {
    EXPECT_EQ(stored(name, DataType::kUint64, {1, 1}, bytes_of<uint64_t>({1ULL << 50})).seed, 1ULL << 50) << name;
  }
}

TEST(RequestFields, EndIdMinusOneMeansNone) {
  EXPECT_EQ(stored_int("end_id", 0).request.end_id, 0);
  EXPECT_EQ(stored_int("end_id", -1).request.end_id, std::nullopt);
}

TEST(RequestFields, HugeNGramSizeMeansOff) {
  EXPECT_EQ(stored_int("no_repeat_ngram_size", 3).request.sampling.no_repeat_ngram_size, 3);
  EXPECT_EQ(stored_int("no_repeat_ngram_size", 1 << 30).request.sampling.no_repeat_ngram_size, 0);
}

TEST(RequestFields, Flags) {
  EXPECT_TRUE(stored_flag("streaming").request.output.streaming);
  EXPECT_TRUE(stored_flag("return_log_probs").request.output.log_probs);
  EXPECT_TRUE(stored_flag("return_context_logits").request.output.context_logits);
  EXPECT_TRUE(stored_flag("return_generation_logits").request.output.generation_logits);
  EXPECT_TRUE(stored_flag("return_perf_metrics").perf_metrics);
  EXPECT_TRUE(stored_flag("ignore_eos").ignore_eos);
  EXPECT_TRUE(stored_flag("exclude_input_in_output").request.output.exclude_input);
}

TEST(RequestFields, WordsAndBias) {
  const std::string list = bytes_of<int32_t>({5, 6, 2, -1});
  EXPECT_EQ(stored("stop_words_list", DataType::kInt32, {1, 2, 2}, list).request.stop_words.at(0),
            (std::vector<TokenId>{5, 6}));
  EXPECT_EQ(stored("bad_words_list", DataType::kInt32, {1, 2, 2}, list).request.bad_words.size(), 1u);
  EXPECT_EQ(stored("embedding_bias", DataType::kFp32, {1, 2}, bytes_of<float>({1, 2})).request.embedding_bias.size(),
            2u);
}

TEST(RequestFields, Drafts) {
  const Request request = stored("draft_input_ids", DataType::kInt32, {1, 2}, bytes_of<int32_t>({8, 9})).request;
  EXPECT_EQ(request.draft_tokens, (std::vector<TokenId>{8, 9}));
  const std::vector<float> logits = {1, -0.5f, 2, 0};
  EXPECT_EQ(stored("draft_logits", DataType::kFp32, {1, 2, 2}, bytes_of<float>(logits)).request.draft_logits, logits);
  const std::string halves = bytes_of<uint16_t>({0x3c00, 0xb800, 0x4000, 0});
  EXPECT_EQ(stored("draft_logits", DataType::kFp16, {1, 2, 2}, halves).request.draft_logits, logits);
  EXPECT_EQ(stored_float("draft_acceptance_threshold", 0.5f).request.draft_acceptance_threshold, 0.5f);
  expect_error(ErrorCode::kInvalidArgument, "input draft_logits is INT32; wanted FP32 or FP16",
               [] { stored_int("draft_logits", 0); });
}

TEST(RequestFields, EmptyTensorsCountAsAbsent) {
  EXPECT_FALSE(stored("request_output_len", DataType::kInt32, {1, 0}, "").max_tokens.has_value());
  stored("draft_input_ids", DataType::kInt32, {1, 0}, "");
  stored("lora_weights", DataType::kFp16, {1, 0, 4}, "");
}

TEST(RequestFields, WrongType) {
  expect_error(ErrorCode::kInvalidArgument, "input temperature is INT32 [1, 1]; wanted FP32",
               [] { stored_int("temperature", 1); });
}

TEST(RequestFields, UnknownInput) {
  EXPECT_EQ(find_field("surprise"), nullptr);
  expect_error(ErrorCode::kUnsupported, "input surprise is unknown to this backend", [] { stored_int("surprise", 1); });
}

TEST(RequestFields, FeaturesToCome) {
  const std::string text = " needs a feature that this version does not support; leave it out";
  stored("guided_decoding_guide", DataType::kBytes, {1, 1}, serialized({""}));
  expect_error(ErrorCode::kUnsupported, "input guided_decoding_guide" + text,
               [] { stored("guided_decoding_guide", DataType::kBytes, {1, 1}, serialized({"{}"})); });
}

TEST(RequestFields, Beams) {
  EXPECT_EQ(stored_int("beam_width", 3).request.sampling.beam_width, 3);
  EXPECT_EQ(stored_float("len_penalty", -0.5f).request.sampling.length_penalty, -0.5f);
  EXPECT_EQ(stored_float("beam_search_diversity_rate", 0.5f).request.sampling.beam_search_diversity_rate, 0.5f);
  expect_error(ErrorCode::kInvalidArgument, "input beam_width is 0; wanted 1 or more",
               [] { stored_int("beam_width", 0); });
}

TEST(RequestFields, EarlyStoppingIsANumberOrAFlag) {
  const auto of_flag = [](char value) {
    return stored("early_stopping", DataType::kBool, {1, 1}, std::string(1, value)).request.sampling.early_stopping;
  };
  EXPECT_EQ(of_flag(0), 0);
  EXPECT_EQ(of_flag(1), 1);
  for (const int mode : {0, 1, 2}) EXPECT_EQ(stored_int("early_stopping", mode).request.sampling.early_stopping, mode);
  expect_error(ErrorCode::kInvalidArgument, "input early_stopping is 3; wanted 0 to 2",
               [] { stored_int("early_stopping", 3); });
  expect_error(ErrorCode::kInvalidArgument, "input early_stopping is FP32; wanted INT32 or BOOL",
               [] { stored_float("early_stopping", 1.0f); });
}

TEST(RequestFields, TopPDecay) {
  EXPECT_EQ(stored_float("runtime_top_p_decay", 0.5f).request.sampling.top_p_decay, 0.5f);
  EXPECT_EQ(stored_float("runtime_top_p_min", 0.25f).request.sampling.top_p_min, 0.25f);
  EXPECT_EQ(stored_int("runtime_top_p_reset_ids", 7).request.sampling.top_p_reset_id, 7);
  expect_error(ErrorCode::kInvalidArgument, "input runtime_top_p_decay is 1.5; wanted",
               [] { stored_float("runtime_top_p_decay", 1.5f); });
  expect_error(ErrorCode::kInvalidArgument, "input runtime_top_p_min is 0; wanted",
               [] { stored_float("runtime_top_p_min", 0.0f); });
}

TEST(RequestFields, EachRowGetsItsShare) {
  TRITONBACKEND_Request request{{{"end_id", DataType::kInt32, {2, 1}, {bytes_of<int32_t>({3, 4})}}}};
  RowRequest row;
  store_field(read_input(&request, 0), 1, 2, row);
  EXPECT_EQ(row.request.end_id, 4);
}

TEST(RequestFields, DeclaredInputs) {
  check_declared_inputs({{"input_ids", DataType::kInt32}, {"draft_logits", DataType::kFp16}});
  expect_error(ErrorCode::kInvalidArgument, "input input_ids of the model configuration is INT64; wanted INT32",
               [] { check_declared_inputs({{"input_ids", DataType::kInt64}}); });
  logged_messages().clear();
  check_declared_inputs({{"surprise", DataType::kInt32}});
  ASSERT_EQ(logged_messages().size(), 1u);
  EXPECT_NE(logged_messages()[0].find("input surprise"), std::string::npos);
}

}  // namespace
}  // namespace inflight::backend
