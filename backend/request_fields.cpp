#include "backend/request_fields.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>

#include "backend/half.h"
#include "backend/triton.h"
#include "backend/word_list.h"
#include "inflight_batcher/api/limits.h"

namespace inflight::backend {

namespace {

using Use = RequestField::Use;
using Value = const RowValue&;
using Row = RowRequest&;

constexpr int32_t kMostInt = std::numeric_limits<int32_t>::max();
constexpr float kMostFloat = std::numeric_limits<float>::max();
constexpr float kLeastFloat = std::numeric_limits<float>::min();  // above 0

/// The contract clamps top-p to [0, 1] and takes 0 and less as "not given".
void store_top_p(Value value, Row row) {
  row.request.sampling.top_p = std::clamp(value.scalar_in(-kMostFloat, kMostFloat), 0.0f, 1.0f);
}

/// BOOL in old configurations, INT32 in newer ones.
void store_early_stopping(Value value, Row row) {
  check(value.type() == DataType::kBool || value.type() == DataType::kInt32, ErrorCode::kInvalidArgument, "input ",
        value.name(), " is ", TRITONSERVER_DataTypeString(value.type()), "; wanted INT32 or BOOL");
  row.request.sampling.early_stopping = value.type() == DataType::kBool ? value.flag() : value.scalar_in<int32_t>(0, 2);
}

void store_end_id(Value value, Row row) {
  const auto id = value.scalar_in<int32_t>(-1, kMostInt);
  row.request.end_id = id < 0 ? std::nullopt : std::optional<TokenId>(id);
}

/// 2^30 and more is how the executors of the field spell "off".
void store_no_repeat_ngram_size(Value value, Row row) {
  const auto size = value.scalar_at_least<int32_t>(0);
  row.request.sampling.no_repeat_ngram_size = size >= (1 << 30) ? 0 : size;
}

void store_draft_logits(Value value, Row row) {
  std::vector<float>& logits = row.request.draft_logits;
  check(value.type() == DataType::kFp32 || value.type() == DataType::kFp16, ErrorCode::kInvalidArgument, "input ",
        value.name(), " is ", TRITONSERVER_DataTypeString(value.type()), "; wanted FP32 or FP16");
  if (value.type() == DataType::kFp32) {
    logits = value.values<float>();
  } else {
    for (const uint16_t bits : value.values<uint16_t>()) logits.push_back(from_half(bits));
  }
}

void warn_deprecated(Value value, Row) {
  if (value.any_content()) log(LogLevel::kWarn, "input " + value.name() + " is deprecated; use return_perf_metrics");
}

const RequestField kFields[] = {
    {"input_ids", DataType::kInt32, Use::kStore, [](Value v, Row r) { r.padded_input_ids = v.values<int32_t>(); }},
    {"input_lengths", DataType::kInt32, Use::kStore, [](Value v, Row r) { r.input_length = v.scalar<int32_t>(); }},
    {"request_output_len", DataType::kInt32, Use::kStore,
     [](Value v, Row r) { r.max_tokens = v.scalar_at_least<int32_t>(1); }},
    {"num_return_sequences", DataType::kInt32, Use::kStore,
     [](Value v, Row r) { r.request.sampling.num_return_sequences = v.scalar_in<int32_t>(1, kMaxReturnSequences); }},
    {"end_id", DataType::kInt32, Use::kStore, store_end_id},
    {"ignore_eos", DataType::kBool, Use::kStore, [](Value v, Row r) { r.ignore_eos = v.flag(); }},
    {"stop_words_list", DataType::kInt32, Use::kStore,
     [](Value v, Row r) { r.request.stop_words = parse_word_list(v.name(), v.values<int32_t>()); }},
    {"bad_words_list", DataType::kInt32, Use::kStore,
     [](Value v, Row r) { r.request.bad_words = parse_word_list(v.name(), v.values<int32_t>()); }},
    {"embedding_bias", DataType::kFp32, Use::kStore,
     [](Value v, Row r) { r.request.embedding_bias = v.values<float>(); }},
    {"temperature", DataType::kFp32, Use::kStore,
     [](Value v, Row r) { r.request.sampling.temperature = v.scalar_in(0.0f, kMostFloat); }},
    {"runtime_top_k", DataType::kInt32, Use::kStore,
     [](Value v, Row r) { r.request.sampling.top_k = v.scalar_at_least<int32_t>(0); }},
    {"runtime_top_p", DataType::kFp32, Use::kStore, store_top_p},
    {"min_p", DataType::kFp32, Use::kStore, [](Value v, Row r) { r.request.sampling.min_p = v.scalar_in(0.0f, 1.0f); }},
    {"repetition_penalty", DataType::kFp32, Use::kStore,
     [](Value v, Row r) {
       r.request.sampling.repetition_penalty = v.scalar_in(std::numeric_limits<float>::min(), kMostFloat);
     }},
    {"presence_penalty", DataType::kFp32, Use::kStore,
     [](Value v, Row r) { r.request.sampling.presence_penalty = v.scalar_in(-kMostFloat, kMostFloat); }},
    {"frequency_penalty", DataType::kFp32, Use::kStore,
     [](Value v, Row r) { r.request.sampling.frequency_penalty = v.scalar_in(-kMostFloat, kMostFloat); }},
    {"prompt_ignore_length", DataType::kInt32, Use::kStore,
     [](Value v, Row r) { r.request.sampling.prompt_ignore_length = v.scalar_at_least<int32_t>(0); }},
    {"min_length", DataType::kInt32, Use::kStore,
     [](Value v, Row r) { r.request.sampling.min_tokens = std::max(1, v.scalar_at_least<int32_t>(0)); }},
    {"min_tokens", DataType::kInt32, Use::kStore,
     [](Value v, Row r) { r.request.sampling.min_tokens = std::max(1, v.scalar_at_least<int32_t>(0)); }},
    {"random_seed", DataType::kUint64, Use::kStore, [](Value v, Row r) { r.seed = v.scalar<uint64_t>(); }},
    {"seed", DataType::kUint64, Use::kStore, [](Value v, Row r) { r.seed = v.scalar<uint64_t>(); }},
    {"no_repeat_ngram_size", DataType::kInt32, Use::kStore, store_no_repeat_ngram_size},
    {"priority", DataType::kFp32, Use::kStore, [](Value v, Row r) { r.request.priority = v.scalar_in(0.0f, 1.0f); }},
    {"prompt_embedding_table", DataType::kInvalid, Use::kStore,
     [](Value v, Row r) { r.prompt.table = read_prompt_table(v); }},
    {"prompt_table_extra_ids", DataType::kUint64, Use::kStore,
     [](Value v, Row r) { r.prompt.extra_ids = v.values<uint64_t>(); }},
    {"prompt_vocab_size", DataType::kInt32, Use::kStore,
     [](Value v, Row r) { r.prompt.vocab_size = v.scalar_at_least<int32_t>(0); }},
    {"retention_token_range_starts", DataType::kInt32, Use::kStore,
     [](Value v, Row r) { r.retention.starts = v.values<int32_t>(); }},
    {"retention_token_range_ends", DataType::kInt32, Use::kStore,
     [](Value v, Row r) { r.retention.ends = v.values<int32_t>(); }},
    {"retention_token_range_priorities", DataType::kInt32, Use::kStore,
     [](Value v, Row r) { r.retention.priorities = v.values<int32_t>(); }},
    {"retention_token_range_durations_ms", DataType::kInt32, Use::kStore,
     [](Value v, Row r) { r.retention.durations_ms = v.values<int32_t>(); }},
    {"retention_decode_priority", DataType::kInt32, Use::kStore,
     [](Value v, Row r) { r.retention.decode_priority = v.scalar<int32_t>(); }},
    {"retention_decode_duration_ms", DataType::kInt32, Use::kStore,
     [](Value v, Row r) { r.retention.decode_duration_ms = v.scalar<int32_t>(); }},
    {"draft_input_ids", DataType::kInt32, Use::kStore,
     [](Value v, Row r) { r.request.draft_tokens = v.values<int32_t>(); }},
    {"draft_logits", DataType::kInvalid, Use::kStore, store_draft_logits},
    {"draft_acceptance_threshold", DataType::kFp32, Use::kStore,
     [](Value v, Row r) { r.request.draft_acceptance_threshold = v.scalar<float>(); }},
    {"stop_after_draft_tokens", DataType::kBool, Use::kStore,
     [](Value v, Row r) { r.request.stop_after_drafts = v.flag(); }},
    {"continued_tokens", DataType::kInt32, Use::kStore,
     [](Value v, Row r) { r.request.continued_tokens = v.scalar_at_least<int32_t>(0); }},
    {"return_log_probs", DataType::kBool, Use::kStore, [](Value v, Row r) { r.request.output.log_probs = v.flag(); }},
    {"return_context_logits", DataType::kBool, Use::kStore,
     [](Value v, Row r) { r.request.output.context_logits = v.flag(); }},
    {"return_generation_logits", DataType::kBool, Use::kStore,
     [](Value v, Row r) { r.request.output.generation_logits = v.flag(); }},
    {"return_perf_metrics", DataType::kBool, Use::kStore, [](Value v, Row r) { r.perf_metrics = v.flag(); }},
    {"return_num_input_tokens", DataType::kBool, Use::kStore, [](Value v, Row r) { r.num_input_tokens = v.flag(); }},
    {"return_num_output_tokens", DataType::kBool, Use::kStore, [](Value v, Row r) { r.num_output_tokens = v.flag(); }},
    {"exclude_input_in_output", DataType::kBool, Use::kStore,
     [](Value v, Row r) { r.request.output.exclude_input = v.flag(); }},
    {"streaming", DataType::kBool, Use::kStore, [](Value v, Row r) { r.request.output.streaming = v.flag(); }},
    {"return_kv_cache_reuse_stats", DataType::kBool, Use::kStore, warn_deprecated},
    {"beam_width", DataType::kInt32, Use::kStore,
     [](Value v, Row r) { r.request.sampling.beam_width = v.scalar_at_least<int32_t>(1); }},
    {"len_penalty", DataType::kFp32, Use::kStore,
     [](Value v, Row r) { r.request.sampling.length_penalty = v.scalar_in(-kMostFloat, kMostFloat); }},
    {"early_stopping", DataType::kInvalid, Use::kStore, store_early_stopping},
    {"beam_search_diversity_rate", DataType::kFp32, Use::kStore,
     [](Value v, Row r) { r.request.sampling.beam_search_diversity_rate = v.scalar_in(-kMostFloat, kMostFloat); }},
    {"runtime_top_p_decay", DataType::kFp32, Use::kStore,
     [](Value v, Row r) { r.request.sampling.top_p_decay = v.scalar_in(kLeastFloat, 1.0f); }},
    {"runtime_top_p_min", DataType::kFp32, Use::kStore,
     [](Value v, Row r) { r.request.sampling.top_p_min = v.scalar_in(kLeastFloat, 1.0f); }},
    {"runtime_top_p_reset_ids", DataType::kInt32, Use::kStore,
     [](Value v, Row r) { r.request.sampling.top_p_reset_id = v.scalar_at_least<int32_t>(-1); }},

    // Without effect; `stop` is read before the others.
    {"stop", DataType::kBool, Use::kIgnore},
    {"pad_id", DataType::kInt32, Use::kIgnore},
    {"decoder_input_ids", DataType::kInt32, Use::kIgnore},
    {"decoder_input_lengths", DataType::kInt32, Use::kIgnore},
    {"START", DataType::kInvalid, Use::kIgnore},
    {"END", DataType::kInvalid, Use::kIgnore},
    {"CORRID", DataType::kInvalid, Use::kIgnore},

    // Features to come.
    {"encoder_input_features", DataType::kInvalid, Use::kLater},
    {"encoder_output_lengths", DataType::kInt32, Use::kLaterIfNonzero},
    {"cross_attention_mask", DataType::kBool, Use::kLater},
    {"skip_cross_attn_blocks", DataType::kBool, Use::kLaterIfNonzero},
    {"mrope_rotary_cos_sin", DataType::kFp32, Use::kLater},
    {"mrope_position_deltas", DataType::kInt64, Use::kLater},
    {"lora_task_id", DataType::kUint64, Use::kLater},
    {"lora_weights", DataType::kFp16, Use::kLater},
    {"lora_config", DataType::kInt32, Use::kLater},
    {"context_phase_params", DataType::kUint8, Use::kLater},
    {"guided_decoding_guide_type", DataType::kBytes, Use::kLaterIfNonzero},
    {"guided_decoding_guide", DataType::kBytes, Use::kLaterIfNonzero},
    {"lookahead_window_size", DataType::kInt32, Use::kLaterIfNonzero},
    {"lookahead_ngram_size", DataType::kInt32, Use::kLaterIfNonzero},
    {"lookahead_verification_set_size", DataType::kInt32, Use::kLaterIfNonzero},
};

bool has_content(Use use, const RowValue& value) { return use == Use::kLater || value.any_content(); }

}  // namespace

const RequestField* find_field(std::string_view name) {
  static const auto kByName = [] {
    std::unordered_map<std::string_view, const RequestField*> fields;
    for (const RequestField& field : kFields) fields.emplace(field.name, &field);
    return fields;
  }();
  const auto found = kByName.find(name);
  return found == kByName.end() ? nullptr : found->second;
}

void store_field(const InputTensor& tensor, int row, int rows, RowRequest& request, FieldLookup find) {
  const RequestField* field = find(tensor.name);
  check(field != nullptr, ErrorCode::kUnsupported, "input ", tensor.name, " is unknown to this backend");
  if (field->use == Use::kIgnore || tensor.elements() == 0) return;
  check(field->type == DataType::kInvalid || field->type == tensor.type, ErrorCode::kInvalidArgument, "input ",
        tensor.name, " is ", describe(tensor), "; wanted ", TRITONSERVER_DataTypeString(field->type));
  const RowValue value(tensor, row, rows);
  if (field->use == Use::kStore) return field->store(value, request);
  check(!has_content(field->use, value), ErrorCode::kUnsupported, "input ", tensor.name,
        " needs a feature that this version does not support; leave it out");
}

void check_declared_inputs(const std::map<std::string, DataType, std::less<>>& inputs, FieldLookup find) {
  for (const auto& [name, type] : inputs) {
    const RequestField* field = find(name);
    if (field == nullptr) {
      log(LogLevel::kWarn, "input " + name + " of the model configuration is unknown; requests that send it fail");
      continue;
    }
    check(field->type == DataType::kInvalid || field->type == type, ErrorCode::kInvalidArgument, "input ", name,
          " of the model configuration is ", TRITONSERVER_DataTypeString(type), "; wanted ",
          TRITONSERVER_DataTypeString(field->type));
  }
}

}  // namespace inflight::backend
