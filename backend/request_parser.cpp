#include "backend/request_parser.h"

#include <algorithm>
#include <random>

#include "backend/text/text_fields.h"
#include "backend/triton.h"

namespace inflight::backend {

namespace {

/// Tokens before a chunk that a stateless detokenizer gets: enough for the longest run that one text position can span.
constexpr int kPrefixTokens = 16;

std::vector<InputTensor> read_inputs(TRITONBACKEND_Request* request) {
  uint32_t count = 0;
  require_ok(TRITONBACKEND_RequestInputCount(request, &count));
  std::vector<InputTensor> inputs;
  inputs.reserve(count);
  for (uint32_t i = 0; i < count; ++i) inputs.push_back(read_input(request, i));
  return inputs;
}

bool is_stop_order(const std::vector<InputTensor>& inputs) {
  const auto stop = std::find_if(inputs.begin(), inputs.end(), [](const auto& it) { return it.name == "stop"; });
  if (stop == inputs.end()) return false;
  check(stop->type == DataType::kBool, ErrorCode::kInvalidArgument, "input stop is ", describe(*stop), "; wanted BOOL");
  return RowValue(*stop, 0, 1).any_content();
}

/// Rows of the request: the first dimension of every input, where the model has a batch dimension.
int count_rows(const std::vector<InputTensor>& inputs, bool batched) {
  if (!batched) return 1;
  int64_t rows = -1;
  for (const InputTensor& input : inputs) {
    const int64_t found = input.shape.empty() ? 0 : input.shape.front();
    if (rows < 0) rows = found;
    check(found == rows && rows > 0, ErrorCode::kInvalidArgument, "input ", input.name, " is ", describe(input),
          "; wanted ", std::max<int64_t>(rows, 1), " rows like the first input");
  }
  check(rows > 0, ErrorCode::kInvalidArgument, "the request has no inputs; wanted at least input_ids");
  return static_cast<int>(rows);
}

void store_prompt(RowRequest& row) {
  const auto found = static_cast<int>(row.padded_input_ids.size());
  check(found > 0, ErrorCode::kInvalidArgument, "input input_ids is missing or empty; wanted at least one token");
  const int length = row.input_length.value_or(found);
  check(length >= 1 && length <= found, ErrorCode::kInvalidArgument, "input input_lengths is ", length,
        "; wanted 1 to ", found, ", the width of input_ids");
  row.padded_input_ids.resize(static_cast<size_t>(length));
  row.request.input_ids = std::move(row.padded_input_ids);
}

uint64_t default_seed(const ModelParameters& parameters) {
  return parameters.random_default_seed ? std::random_device{}() : 0;
}

void check_transactions(const RowRequest& row, const ModelConfig& config, int rows) {
  if (config.decoupled) return;
  check(rows == 1, ErrorCode::kInvalidArgument,
        "Batch size > 1 requires the tensorrt_llm backend to be using decoupled transaction policy; found ", rows,
        " rows");
  check(!row.request.output.streaming, ErrorCode::kInvalidArgument,
        "Streaming is only supported if model is deployed using decoupled mode.");
  check(row.request.sampling.num_return_sequences == 1, ErrorCode::kInvalidArgument, "input num_return_sequences is ",
        row.request.sampling.num_return_sequences, "; wanted 1 unless the model is deployed using decoupled mode");
}

void check_drafting(const DraftingConfig& drafting, int rows) {
  if (drafting.num_draft_tokens == 0) {
    check(!drafting.use_draft_logits, ErrorCode::kInvalidArgument, "use_draft_logits is true without num_draft_tokens");
    return;
  }
  check(rows == 1, ErrorCode::kInvalidArgument, "num_draft_tokens with ", rows, " rows, wanted one");
}

/// What depends on several inputs at once.
void complete_row(RowRequest& row, const ModelConfig& config, const ModelParameters& parameters, int rows) {
  check_transactions(row, config, rows);
  if (!config.has_texts()) {
    check(rows == 1 || row.input_length, ErrorCode::kInvalidArgument, "input_lengths is not present in the request of ",
          rows, " rows; it is wanted to strip the padding");
  }
  const size_t padded_length = row.padded_input_ids.size();
  if (!config.has_texts()) store_prompt(row);
  store_prompt_tensors(row.prompt, padded_length, row.request);
  check(row.max_tokens.has_value(), ErrorCode::kInvalidArgument,
        config.has_texts() ? "max_tokens" : "request_output_len", " is not present in the request");
  row.request.max_tokens = *row.max_tokens;
  row.request.retention = retention_of(row.retention);
  row.request.sampling.seed = row.seed ? *row.seed : default_seed(parameters);
  if (row.ignore_eos) row.request.end_id.reset();
  check_drafting(row.drafting, rows);
}

/// `request_type` is a request parameter, not a tensor; an unknown one means the default.
void check_request_type(TRITONBACKEND_Request* request) {
  uint32_t count = 0;
  require_ok(TRITONBACKEND_RequestParameterCount(request, &count));
  for (uint32_t i = 0; i < count; ++i) {
    const char* key = nullptr;
    ParameterType type{};
    const void* value = nullptr;
    require_ok(TRITONBACKEND_RequestParameter(request, i, &key, &type, &value));
    if (std::string_view(key) != "request_type" || type != ParameterType::kString) continue;
    const std::string_view text = static_cast<const char*>(value);
    check(text != "context_only" && text != "generation_only", ErrorCode::kUnsupported,
          "request parameter request_type is ", text, "; this version supports context_and_generation");
    if (text != "context_and_generation")
      log(LogLevel::kWarn, concat("request_type ", text, " is unknown and ignored"));
  }
}

std::chrono::microseconds request_timeout(TRITONBACKEND_Request* request) {
  uint64_t timeout = 0;
  if (TRITONBACKEND_InferenceRequestTimeoutMicroseconds != nullptr) {
    require_ok(TRITONBACKEND_InferenceRequestTimeoutMicroseconds(request, &timeout));
  }
  return std::chrono::microseconds(std::min<uint64_t>(timeout, INT64_MAX));
}

OutputSet requested_outputs(TRITONBACKEND_Request* request, bool has_texts) {
  uint32_t count = 0;
  require_ok(TRITONBACKEND_RequestOutputCount(request, &count));
  OutputSet outputs;
  for (uint32_t i = 0; i < count; ++i) {
    const char* name = nullptr;
    require_ok(TRITONBACKEND_RequestOutputName(request, i, &name));
    outputs.add(name);
  }
  check(has_texts || (outputs.has("output_ids") && outputs.has("sequence_length")), ErrorCode::kInvalidArgument,
        "the requested outputs lack output_ids or sequence_length; wanted both");
  return outputs;
}

/// The engine computes only what will be sent.
void drop_unrequested(const OutputSet& requested, OutputConfig& output) {
  output.log_probs &= requested.has("cum_log_probs") || requested.has("output_log_probs");
  output.context_logits &= requested.has("context_logits");
  output.generation_logits &= requested.has("generation_logits");
}

ResponseForm response_form(const RowRequest& row, const OutputSet& requested, const ModelConfig& config, int index,
                           int rows) {
  ResponseForm form;
  form.batch_index = index;
  form.batched = config.max_batch_size > 0;
  form.streaming = row.request.output.streaming;
  form.includes_input = !form.streaming && !row.request.output.exclude_input;
  const OutputSwitches switches{.batch = rows > 1,
                                .sequences = row.request.sampling.num_return_sequences > 1,
                                .log_probs = row.request.output.log_probs,
                                .context_logits = row.request.output.context_logits,
                                .generation_logits = row.request.output.generation_logits,
                                .perf_metrics = row.perf_metrics,
                                .num_input_tokens = row.num_input_tokens,
                                .num_output_tokens = row.num_output_tokens};
  form.outputs = requested.enabled(switches, config.outputs);
  return form;
}

}  // namespace

ParsedRequest parse_request(TRITONBACKEND_Request* request, const ModelConfig& config,
                            const ModelParameters& parameters, const RowRequest& defaults) {
  const std::vector<InputTensor> inputs = read_inputs(request);
  ParsedRequest parsed;
  parsed.stop = is_stop_order(inputs);
  if (parsed.stop) return parsed;
  check_request_type(request);
  const OutputSet requested = requested_outputs(request, config.has_texts());
  const auto timeout = request_timeout(request);
  const int rows = count_rows(inputs, config.max_batch_size > 0);
  const FieldLookup find = config.has_texts() ? find_text_field : find_field;
  for (int index = 0; index < rows; ++index) {
    RowRequest row = defaults;
    for (const InputTensor& input : inputs) store_field(input, index, rows, row, find);
    complete_row(row, config, parameters, rows);
    row.request.timeout = timeout;
    row.request.output.perf_metrics = true;  // the statistics need its times, asked for or not
    if (requested.has("prefix_ids")) row.request.output.prefix_tokens = kPrefixTokens;
    ResponseForm form = response_form(row, requested, config, index, rows);
    drop_unrequested(requested, row.request.output);
    parsed.rows.push_back({std::move(row.request), std::move(form), std::move(row.texts), row.drafting});
  }
  return parsed;
}

}  // namespace inflight::backend
