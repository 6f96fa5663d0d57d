#include "backend/model_parameters.h"
#include "backend/request_parser.h"
#include "backend/word_list.h"
#include "inflight/error.h"
#include "tests/fuzz/targets.h"
#include "tests/triton/fake_triton.h"

namespace inflight::fuzz {

namespace {

using namespace inflight::backend;

const std::vector<std::pair<std::string, DataType>> kInputs = {
    {"input_ids", DataType::kInt32},
    {"input_lengths", DataType::kInt32},
    {"request_output_len", DataType::kInt32},
    {"num_return_sequences", DataType::kInt32},
    {"end_id", DataType::kInt32},
    {"pad_id", DataType::kInt32},
    {"ignore_eos", DataType::kBool},
    {"stop_words_list", DataType::kInt32},
    {"bad_words_list", DataType::kInt32},
    {"embedding_bias", DataType::kFp32},
    {"temperature", DataType::kFp32},
    {"runtime_top_k", DataType::kInt32},
    {"runtime_top_p", DataType::kFp32},
    {"runtime_top_p_decay", DataType::kFp32},
    {"min_p", DataType::kFp32},
    {"repetition_penalty", DataType::kFp32},
    {"presence_penalty", DataType::kFp32},
    {"prompt_ignore_length", DataType::kInt32},
    {"min_length", DataType::kInt32},
    {"seed", DataType::kUint64},
    {"no_repeat_ngram_size", DataType::kInt32},
    {"priority", DataType::kFp32},
    {"beam_width", DataType::kInt32},
    {"early_stopping", DataType::kInt32},
    {"return_log_probs", DataType::kBool},
    {"return_context_logits", DataType::kBool},
    {"streaming", DataType::kBool},
    {"stop", DataType::kBool},
    {"draft_input_ids", DataType::kInt32},
    {"draft_logits", DataType::kFp32},
    {"draft_acceptance_threshold", DataType::kFp32},
    {"prompt_embedding_table", DataType::kFp16},
    {"prompt_table_extra_ids", DataType::kUint64},
    {"prompt_vocab_size", DataType::kInt32},
    {"retention_token_range_starts", DataType::kInt32},
    {"retention_token_range_ends", DataType::kInt32},
    {"retention_token_range_priorities", DataType::kInt32},
    {"retention_token_range_durations_ms", DataType::kInt32},
    {"retention_decode_priority", DataType::kInt32},
    {"lora_task_id", DataType::kUint64},
    {"guided_decoding_guide_type", DataType::kBytes},
    {"guided_decoding_guide", DataType::kBytes},
    {"surprise", DataType::kFp64},
};

const std::vector<std::string> kOutputs = {"output_ids",        "sequence_length", "cum_log_probs", "output_log_probs",
                                           "generation_logits", "finish_reason",   "prefix_ids",    "nonsense"};

size_t bytes_of_type(DataType type) {
  static constexpr size_t kSizes[] = {1, 1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 4, 8, 1, 2};
  return kSizes[static_cast<size_t>(type)];
}

std::string element(Dice& dice, DataType type) {
  const auto raw = [](const auto value) { return std::string(reinterpret_cast<const char*>(&value), sizeof(value)); };
  if (type == DataType::kFp32) return raw(static_cast<float>(dice.real()));
  if (type == DataType::kFp64) return raw(dice.real());
  if (type == DataType::kBytes) {
    const std::string text = dice.bytes(6);
    return raw(static_cast<uint32_t>(dice.chance(0.95) ? text.size() : dice.bits()())) + text;
  }
  return raw(dice.integer()).substr(0, bytes_of_type(type));
}

/// Of the right size more often than not.
std::string content(Dice& dice, DataType type, const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t dim : shape) count = dim < 0 || dim > 64 ? 1 : count * dim;
  std::string bytes;
  for (int64_t i = 0; i < std::min<int64_t>(count, 4096); ++i) bytes += element(dice, type);
  if (dice.chance(0.05)) bytes += dice.bytes(9);
  if (dice.chance(0.05)) bytes.resize(static_cast<size_t>(dice.below(static_cast<int64_t>(bytes.size()) + 1)));
  return bytes;
}

std::vector<int64_t> shape_of(Dice& dice, int64_t rows, const std::string& name) {
  std::vector<int64_t> shape = {dice.chance(0.95) ? rows : dice.integer()};
  const bool list = name.ends_with("words_list");
  if (list) shape.push_back(dice.chance(0.9) ? 2 : dice.between(0, 4));
  const bool vector = list || name == "input_ids" || name.starts_with("retention_token") || name == "embedding_bias";
  shape.push_back(vector ? dice.between(0, 8) : 1);
  if (dice.chance(0.05)) shape.push_back(dice.integer());
  if (dice.chance(0.03)) shape.clear();
  return shape;
}

/// Buffers as the server holds them: in one piece, mostly.
std::vector<std::string> in_pieces(Dice& dice, std::string bytes) {
  if (dice.chance(0.9)) return {std::move(bytes)};
  std::vector<std::string> pieces;
  while (!bytes.empty()) {
    const auto length = static_cast<size_t>(dice.between(1, 9));
    pieces.push_back(bytes.substr(0, length));
    bytes.erase(0, length);
  }
  return pieces;
}

TRITONBACKEND_Input input(Dice& dice, int64_t rows) {
  auto [name, type] = dice.pick(kInputs);
  if (dice.chance(0.05)) type = static_cast<DataType>(dice.between(0, 14));
  const std::vector<int64_t> shape = shape_of(dice, rows, name);
  return {name, type, shape, in_pieces(dice, content(dice, type, shape)),
          dice.chance(0.01) ? MemoryType::kGpu : MemoryType::kCpu};
}

/// A prompt that is right, so that what is beside it gets looked at.
void add_prompt(Dice& dice, int64_t rows, TRITONBACKEND_Request& request) {
  const auto add = [&](const char* name, int64_t width, int32_t value) {
    std::string bytes;
    for (int64_t i = 0; i < rows * width; ++i) bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
    request.inputs.push_back({name, DataType::kInt32, {rows, width}, {bytes}});
  };
  add("input_ids", 5, 7);
  add("input_lengths", 1, static_cast<int32_t>(dice.between(1, 5)));
  add("request_output_len", 1, 9);
}

class RequestTarget : public Target {
 public:
  void run(Dice& dice) override {
    const int64_t rows = dice.chance(0.7) ? 1 : dice.between(0, 4);
    TRITONBACKEND_Request request;
    if (dice.chance(0.7)) add_prompt(dice, rows, request);
    for (int64_t i = dice.between(0, 5); i > 0; --i) request.inputs.push_back(input(dice, rows));
    request.requested_outputs = {"output_ids", "sequence_length"};
    for (int64_t i = dice.below(4); i > 0; --i) request.requested_outputs.push_back(dice.pick(kOutputs));
    if (dice.chance(0.1)) request.parameters = {{"request_type", dice.bytes(12)}, {"other", "x"}};
    request.timeout_us = dice.chance(0.1) ? dice.bits()() : 0;
    ModelConfig config;
    config.max_batch_size = dice.chance(0.8) ? 8 : 0;
    config.decoupled = dice.chance(0.7);
    const ParsedRequest parsed = parse_request(&request, config, ModelParameters());
    check(parsed.stop || !parsed.rows.empty(), ErrorCode::kInvalidArgument, "nothing came of it");
  }
  void finish() override { logged_messages().clear(); }
};

class WordListTarget : public Target {
 public:
  void run(Dice& dice) override {
    std::vector<int32_t> values(static_cast<size_t>(dice.below(20)));
    int32_t offset = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      const bool is_offset = i >= values.size() / 2;
      offset += static_cast<int32_t>(dice.below(3));
      values[i] = is_offset && dice.chance(0.8) ? offset : static_cast<int32_t>(dice.integer());
    }
    size_t tokens = 0;
    for (const auto& word : parse_word_list("stop_words_list", values)) tokens += word.size();
    if (tokens > values.size() / 2) throw std::logic_error("words of more tokens than there are");
  }
};

class ParametersTarget : public Target {
 public:
  void run(Dice& dice) override {
    static const std::vector<std::string> kKeys = {"gpt_model_type",
                                                   "gpt_model_path",
                                                   "max_batch_size",
                                                   "max_num_tokens",
                                                   "max_sequence_length",
                                                   "kv_cache_block_size",
                                                   "max_queue_size",
                                                   "batch_invariant",
                                                   "kv_cache_free_gpu_mem_fraction",
                                                   "enable_kv_cache_reuse",
                                                   "decoding_mode",
                                                   "max_tokens_in_paged_kv_cache",
                                                   "max_beam_width",
                                                   "num_threads",
                                                   "kv_cache_cpu_memory_bytes",
                                                   "batch_scheduler_policy",
                                                   "device",
                                                   "cancellation_check_period_ms",
                                                   "gpu_device_ids",
                                                   "sink_token_length",
                                                   "max_attention_window_size",
                                                   "stats_check_period_ms",
                                                   "kv_cache_host_memory_bytes"};
    static const std::vector<std::string> kValues = {"",     "${x}",  "${",  "true", "0",  "1",
                                                     "-1",   "1e400", "nan", " 5",   "5 ", "99999999999999999999",
                                                     "0x10", "0,1;2", "inf", "."};
    ModelConfig config;
    config.name = "m";
    config.parameters = {{"gpt_model_type", "inflight_fused_batching"}, {"gpt_model_path", "/"}};
    for (int64_t i = dice.between(1, 5); i > 0; --i) {
      std::string value = dice.chance(0.5) ? dice.pick(kValues) : std::to_string(dice.integer());
      if (dice.chance(0.2)) value = dice.bytes(10);
      config.parameters[dice.chance(0.95) ? dice.pick(kKeys) : dice.bytes(6)] = value;
    }
    parse_parameters(config);
    logged_messages().clear();
  }
};

}  // namespace

std::vector<NamedTarget> request_targets() {
  return {{"request", 0.5, [] { return std::make_unique<RequestTarget>(); }},
          {"word_list", 0.5, [] { return std::make_unique<WordListTarget>(); }},
          {"parameters", 1, [] { return std::make_unique<ParametersTarget>(); }}};
}

}  // namespace inflight::fuzz
