#include "backend/model_parameters.h"

#include "tests/triton/harness.h"

namespace inflight::backend {
namespace {

/// The required parameters and these; the engine's folder only has to exist here.
ModelParameters parsed(std::map<std::string, std::string, std::less<>> parameters) {
  ModelConfig config;
  config.name = "m";
  config.max_queue_size = 5;
  config.parameters = std::move(parameters);
  config.parameters.emplace("gpt_model_type", "inflight_fused_batching");
  config.parameters.emplace("gpt_model_path", "/");
  return parse_parameters(config);
}

TEST(ModelParameters, Values) {
  const ModelParameters found = parsed({{"max_batch_size", "7"},
                                        {"max_num_tokens", "99"},
                                        {"max_sequence_length", "50"},
                                        {"kv_cache_block_size", "16"},
                                        {"max_tokens_in_paged_kv_cache", "4096"},
                                        {"kv_cache_free_gpu_mem_fraction", "0.5"},
                                        {"enable_kv_cache_reuse", "False"},
                                        {"enable_chunked_context", "0"},
                                        {"exclude_input_in_output", "TRUE"},
                                        {"tensor_parallel_size", "2"},
                                        {"plan_ahead", "true"},
                                        {"batch_invariant", "1"},
                                        {"random_weights", "True"},
                                        {"random_default_seed", "1"},
                                        {"batch_scheduler_policy", "max_utilization"}});
  EXPECT_EQ(found.engine_dir, "/");
  EXPECT_EQ(found.executor.max_batch_size, 7);
  EXPECT_EQ(found.executor.max_num_tokens, 99);
  EXPECT_EQ(found.executor.max_sequence_length, 50);
  EXPECT_EQ(found.executor.kv_cache.block_size, 16);
  EXPECT_EQ(found.executor.kv_cache.max_tokens, 4096);
  EXPECT_EQ(found.executor.kv_cache.free_memory_fraction, 0.5);
  EXPECT_FALSE(found.executor.kv_cache.enable_block_reuse);
  EXPECT_FALSE(found.executor.enable_chunked_context);
  EXPECT_TRUE(found.exclude_input_in_output);
  EXPECT_EQ(found.executor.tensor_parallel, 2);
  EXPECT_EQ(found.executor.plan_ahead, true);
  EXPECT_TRUE(found.executor.batch_invariant);
  EXPECT_TRUE(found.executor.random_weights);
  EXPECT_TRUE(found.random_default_seed);
  EXPECT_EQ(found.executor.capacity_policy, CapacityPolicy::kMaxUtilization);
  EXPECT_EQ(found.executor.max_queue_size, 5);
}

TEST(ModelParameters, QueueSizeOfTheParameterComesFirst) {
  EXPECT_EQ(parsed({{"max_queue_size", "3"}}).executor.max_queue_size, 3);
  EXPECT_EQ(parsed({{"max_queue_size", "0"}}).executor.max_queue_size, 0);
  EXPECT_THROW(parsed({{"max_queue_size", "-1"}}), Error);
}

TEST(ModelParameters, UnfilledAndEmptyKeepTheDefault) {
  logged_messages().clear();
  const ModelParameters found = parsed({{"max_batch_size", "${max_batch_size}"},
                                        {"encoder_model_path", "${encoder_engine_dir}"},
                                        {"max_num_tokens", ""},
                                        {"cross_kv_cache_fraction", ""}});
  EXPECT_EQ(found.executor.max_batch_size, ExecutorConfig().max_batch_size);
  EXPECT_EQ(found.executor.max_num_tokens, ExecutorConfig().max_num_tokens);
  ASSERT_EQ(logged_messages().size(), 1u);
  EXPECT_EQ(logged_messages()[0],
            "m: parameters left unfilled, their defaults are used: encoder_model_path, max_batch_size");
}

TEST(ModelParameters, UnknownKeysAndPoliciesWarn) {
  logged_messages().clear();
  const ModelParameters found = parsed({{"surprise", "1"}, {"batch_scheduler_policy", "best"}});
  EXPECT_EQ(found.executor.capacity_policy, CapacityPolicy::kGuaranteedNoEvict);
  ASSERT_EQ(logged_messages().size(), 2u);
  EXPECT_NE(logged_messages()[1].find("parameter surprise is unknown"), std::string::npos);
}

TEST(ModelParameters, NeutralValuesOfFeaturesToCome) {
  parsed({{"gpu_weights_percent", "1.0"}, {"speculative_decoding_fast_logits", "False"}, {"num_nodes", "1"}});
}

TEST(ModelParameters, KvCache) {
  const KvCacheConfig found = parsed({{"kv_cache_host_memory_bytes", "1073741824"},
                                      {"kv_cache_onboard_blocks", "false"},
                                      {"max_attention_window_size", "64, 4096,128"},
                                      {"sink_token_length", "4"}})
                                  .executor.kv_cache;
  EXPECT_EQ(found.host_memory_bytes, int64_t{1} << 30);
  EXPECT_FALSE(found.onboard_blocks);
  EXPECT_EQ(found.attention_windows, (std::vector<int>{64, 4096, 128}));
  EXPECT_EQ(found.sink_tokens, 4);
  for (const char* windows : {"0", "64,,128", "64,x", "-1"})
    expect_error(ErrorCode::kInvalidArgument, "parameter max_attention_window_size is '",
                 [&] { parsed({{"max_attention_window_size", windows}}); });
}

TEST(ModelParameters, FeaturesToCome) {
  for (const char* key :
       {"encoder_model_path", "lora_prefetch_dir", "medusa_choices", "guided_decoding_backend", "participant_ids"}) {
    expect_error(ErrorCode::kUnsupported, std::string("parameter ") + key + " is '4', which needs a feature",
                 [&] { parsed({{key, "4"}}); });
  }
  expect_error(ErrorCode::kUnsupported, "parameter decoding_mode is 'medusa', which this version does not support",
               [] { parsed({{"decoding_mode", "medusa"}}); });
}

TEST(ModelParameters, Beams) {
  EXPECT_EQ(parsed({{"decoding_mode", "top_k_top_p"}}).executor.max_beam_width, 1);
  EXPECT_EQ(parsed({{"max_beam_width", "4"}, {"decoding_mode", "beam_search"}}).executor.max_beam_width, 4);
  expect_error(ErrorCode::kInvalidArgument, "parameter max_beam_width is '0'",
               [] { parsed({{"max_beam_width", "0"}}); });
}

TEST(ModelParameters, ModelType) {
  for (const char* type : {"inflight_fused_batching", "inflight_batching", "V1", "v1"})
    parsed({{"gpt_model_type", type}});
  for (const char* type : {"", "${batching_strategy}", "dynamic"}) {
    expect_error(ErrorCode::kInvalidArgument, std::string("Invalid gpt_model_type: found '") + type + "'",
                 [&] { parsed({{"gpt_model_type", type}}); });
  }
}

TEST(ModelParameters, ModelPath) {
  expect_error(ErrorCode::kInvalidArgument, "parameter gpt_model_path is '${engine_dir}'; wanted the folder",
               [] { parsed({{"gpt_model_path", "${engine_dir}"}}); });
  expect_error(ErrorCode::kNotFound, "parameter gpt_model_path is '/nowhere', which does not exist",
               [] { parsed({{"gpt_model_path", "/nowhere"}}); });
}

}  // namespace
}  // namespace inflight::backend
