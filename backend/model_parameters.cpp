#include "backend/model_parameters.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <sstream>
#include <vector>

#include "backend/parameter_value.h"
#include "backend/triton.h"

namespace inflight::backend {

namespace {

constexpr int64_t kMostBytes = std::numeric_limits<int64_t>::max();

struct ParameterRow {
  std::string_view key;
  void (*store)(const ParameterValue&, ModelParameters&);
};

/// A key of a later feature: only values that switch the feature off are accepted.
struct LaterRow {
  std::string_view key;
  std::vector<std::string_view> neutral;
};

void check_model_type(const ParameterValue& value, ModelParameters&) {
  const std::string& type = value.text();
  if (type == "V1" || type == "v1") {
    log(LogLevel::kWarn, "gpt_model_type " + type + " (static batching) is served by in-flight batching");
    return;
  }
  check(type == "inflight_fused_batching" || type == "inflight_batching", ErrorCode::kInvalidArgument,
        "Invalid gpt_model_type: found '", type, "', wanted inflight_fused_batching, inflight_batching or V1");
}

void store_scheduler_policy(const ParameterValue& value, ModelParameters& parameters) {
  if (value.text() == "max_utilization") {
    parameters.executor.capacity_policy = CapacityPolicy::kMaxUtilization;
  } else if (value.text() != "guaranteed_no_evict") {
    log(LogLevel::kWarn, "parameter batch_scheduler_policy is '" + value.text() +
                             "'; wanted max_utilization or guaranteed_no_evict; the latter is used");
  }
}

void store_decoding_mode(const ParameterValue& value, ModelParameters&) {
  static const std::vector<std::string_view> kNow = {"top_k", "top_p", "top_k_top_p", "beam_search"};
  static const std::vector<std::string_view> kLater = {"medusa", "redrafter", "lookahead", "eagle"};
  const auto is_in = [&](const auto& list) { return std::find(list.begin(), list.end(), value.text()) != list.end(); };
  check(!is_in(kLater), ErrorCode::kUnsupported, "parameter decoding_mode is '", value.text(),
        "', which this version does not support; wanted top_k, top_p, top_k_top_p or beam_search");
  check(is_in(kNow), ErrorCode::kInvalidArgument, "parameter decoding_mode is '", value.text(),
        "'; wanted top_k, top_p, top_k_top_p or beam_search");
}

void store_attention_windows(const ParameterValue& value, ModelParameters& parameters) {
  std::stringstream list(value.text());
  for (std::string one; std::getline(list, one, ',');) {
    const size_t first = one.find_first_not_of(' '), last = one.find_last_not_of(' ');
    const std::string trimmed = first == std::string::npos ? "" : one.substr(first, last - first + 1);
    parameters.executor.kv_cache.attention_windows.push_back(ParameterValue(value.key(), trimmed).small_integer(1));
  }
}

void refuse_old_worker_path(const ParameterValue&, ModelParameters&) {
  throw Error(ErrorCode::kInvalidArgument, "parameter worker_path is obsolete; use executor_worker_path or remove it");
}

const ParameterRow kRows[] = {
    {"gpt_model_type", check_model_type},
    {"gpt_model_path", [](const ParameterValue& v, ModelParameters& p) { p.engine_dir = v.text(); }},
    {"max_tokens_in_paged_kv_cache",
     [](const ParameterValue& v, ModelParameters& p) { p.executor.kv_cache.max_tokens = v.integer(1, kMostBytes); }},
    {"kv_cache_free_gpu_mem_fraction",
     [](const ParameterValue& v, ModelParameters& p) { p.executor.kv_cache.free_memory_fraction = v.number(0, 1); }},
    {"enable_kv_cache_reuse",
     [](const ParameterValue& v, ModelParameters& p) { p.executor.kv_cache.enable_block_reuse = v.boolean(); }},
    {"batch_scheduler_policy", store_scheduler_policy},
    {"enable_chunked_context",
     [](const ParameterValue& v, ModelParameters& p) { p.executor.enable_chunked_context = v.boolean(); }},
    {"exclude_input_in_output",
     [](const ParameterValue& v, ModelParameters& p) { p.exclude_input_in_output = v.boolean(); }},
    {"cancellation_check_period_ms",
     [](const ParameterValue& v, ModelParameters& p) { p.cancellation_check_period_ms = v.small_integer(1); }},
    {"stats_check_period_ms",
     [](const ParameterValue& v, ModelParameters& p) { p.stats_check_period_ms = v.small_integer(1); }},
    {"decoding_mode", store_decoding_mode},
    {"max_beam_width",
     [](const ParameterValue& v, ModelParameters& p) { p.executor.max_beam_width = v.small_integer(1); }},
    {"worker_path", refuse_old_worker_path},
    {"device", [](const ParameterValue& v, ModelParameters& p) { p.executor.device = v.text(); }},
    {"tensor_parallel_size",
     [](const ParameterValue& v, ModelParameters& p) { p.executor.tensor_parallel = v.small_integer(1); }},
    {"pipeline_parallel_size",
     [](const ParameterValue& v, ModelParameters& p) { p.executor.pipeline_parallel = v.small_integer(1); }},
    {"num_threads", [](const ParameterValue& v, ModelParameters& p) { p.executor.num_threads = v.small_integer(0); }},
    {"max_batch_size",
     [](const ParameterValue& v, ModelParameters& p) { p.executor.max_batch_size = v.small_integer(1); }},
    {"max_queue_size",
     [](const ParameterValue& v, ModelParameters& p) { p.executor.max_queue_size = v.small_integer(0); }},
    {"max_num_tokens",
     [](const ParameterValue& v, ModelParameters& p) { p.executor.max_num_tokens = v.small_integer(1); }},
    {"max_sequence_length",
     [](const ParameterValue& v, ModelParameters& p) { p.executor.max_sequence_length = v.small_integer(1); }},
    {"kv_cache_block_size",
     [](const ParameterValue& v, ModelParameters& p) { p.executor.kv_cache.block_size = v.small_integer(1); }},
    {"kv_cache_cpu_memory_bytes",
     [](const ParameterValue& v, ModelParameters& p) {
       p.executor.kv_cache.cpu_memory_bytes = v.integer(1, kMostBytes);
     }},
    {"kv_cache_host_memory_bytes",
     [](const ParameterValue& v, ModelParameters& p) {
       p.executor.kv_cache.host_memory_bytes = v.integer(0, kMostBytes);
     }},
    {"kv_cache_onboard_blocks",
     [](const ParameterValue& v, ModelParameters& p) { p.executor.kv_cache.onboard_blocks = v.boolean(); }},
    {"max_attention_window_size", store_attention_windows},
    {"sink_token_length",
     [](const ParameterValue& v, ModelParameters& p) { p.executor.kv_cache.sink_tokens = v.small_integer(0); }},
    {"plan_ahead", [](const ParameterValue& v, ModelParameters& p) { p.executor.plan_ahead = v.boolean(); }},
    {"batch_invariant", [](const ParameterValue& v, ModelParameters& p) { p.executor.batch_invariant = v.boolean(); }},
    {"random_weights", [](const ParameterValue& v, ModelParameters& p) { p.executor.random_weights = v.boolean(); }},
    {"random_default_seed", [](const ParameterValue& v, ModelParameters& p) { p.random_default_seed = v.boolean(); }},
};

const LaterRow kLaterRows[] = {
    {"encoder_model_path", {}},
    {"cross_kv_cache_fraction", {}},
    {"lora_prefetch_dir", {}},
    {"lookahead_window_size", {}},
    {"lookahead_ngram_size", {}},
    {"lookahead_verification_set_size", {}},
    {"medusa_choices", {}},
    {"eagle_choices", {}},
    {"gpu_weights_percent", {"1", "1.0"}},
    {"speculative_decoding_fast_logits", {"false", "False", "FALSE", "0"}},
    {"guided_decoding_backend", {}},
    {"xgrammar_tokenizer_info_path", {}},
    {"participant_ids", {}},
    {"num_nodes", {"1"}},
};

/// Keys of the contract that have nothing to act on here: kernel choices, worker processes, sizes of absent caches;
/// and the tokenizer's keys, which text/text_parameters reads.
constexpr std::string_view kIgnored[] = {
    "FORCE_CPU_ONLY_INPUT_TENSORS",
    "accumulate_tokens",
    "add_special_tokens",
    "cuda_graph_cache_size",
    "cuda_graph_mode",
    "enable_context_fmha_fp32_acc",
    "enable_trt_overlap",
    "executor_worker_path",
    "gpu_device_ids",
    "iter_stats_max_iterations",
    "lora_cache_gpu_memory_fraction",
    "lora_cache_host_memory_bytes",
    "lora_cache_max_adapter_size",
    "lora_cache_optimal_adapter_size",
    "max_queue_delay_microseconds",
    "multi_block_mode",
    "normalize_log_probs",
    "recv_poll_period_ms",
    "request_stats_max_iterations",
    "skip_special_tokens",
    "tensorrt_llm_draft_model_name",
    "tensorrt_llm_model_name",
    "tokenizer_dir",
    "tokenizer_processes",
    "tokenizer_python",
};

void refuse_later_feature(const LaterRow& row, const ParameterValue& value) {
  const bool off = std::find(row.neutral.begin(), row.neutral.end(), value.text()) != row.neutral.end();
  check(off, ErrorCode::kUnsupported, "parameter ", row.key, " is '", value.text(),
        "', which needs a feature that this version does not support; wanted ",
        row.neutral.empty() ? "it unset" : concat("'", row.neutral.front(), "' or unset"));
}

void store(const ParameterValue& value, ModelParameters& parameters) {
  const auto has_key = [&](const auto& row) { return row.key == value.key(); };
  if (const auto* row = std::find_if(std::begin(kRows), std::end(kRows), has_key); row != std::end(kRows)) {
    row->store(value, parameters);
  } else if (const auto* later = std::find_if(std::begin(kLaterRows), std::end(kLaterRows), has_key);
             later != std::end(kLaterRows)) {
    refuse_later_feature(*later, value);
  } else if (std::find(std::begin(kIgnored), std::end(kIgnored), value.key()) == std::end(kIgnored)) {
    log(LogLevel::kWarn, "parameter " + value.key() + " is unknown and ignored");
  }
}

/// The two parameters without a default.
void check_required(const ModelConfig& config) {
  const auto text_of = [&](const char* key) {
    const auto found = config.parameters.find(key);
    return ParameterValue(key, found == config.parameters.end() ? std::string() : found->second);
  };
  ModelParameters unused;
  check_model_type(text_of("gpt_model_type"), unused);
  const ParameterValue path = text_of("gpt_model_path");
  check(!path.text().empty() && !path.is_unfilled(), ErrorCode::kInvalidArgument, "parameter gpt_model_path is '",
        path.text(), "'; wanted the folder of an engine");
  check(std::filesystem::exists(path.text()), ErrorCode::kNotFound, "parameter gpt_model_path is '", path.text(),
        "', which does not exist; wanted the folder of an engine");
}

}  // namespace

ModelParameters parse_parameters(const ModelConfig& config) {
  check_required(config);
  ModelParameters parameters;
  parameters.executor.max_queue_size = config.max_queue_size;
  std::string unfilled;
  for (const auto& [key, text] : config.parameters) {
    const ParameterValue value(key, text);
    if (value.is_unfilled()) {
      unfilled += (unfilled.empty() ? "" : ", ") + key;
    } else if (!text.empty()) {
      store(value, parameters);
    }
  }
  if (!unfilled.empty())
    log(LogLevel::kWarn, config.name + ": parameters left unfilled, their defaults are used: " + unfilled);
  return parameters;
}

}  // namespace inflight::backend
