#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "backend/input_tensor.h"
#include "backend/prompt_tensors.h"
#include "backend/retention_tensors.h"
#include "inflight_batcher/api/drafted_answer.h"
#include "inflight_batcher/api/request.h"

namespace inflight::backend {

/// The texts of one row of a text model's request.
struct RowTexts {
  std::string prompt;
  std::vector<std::string> bad_words;
  std::vector<std::string> stop_words;
  std::vector<std::string> bias_words;
  std::vector<float> bias_weights;
  uint64_t prompt_table_extra_id = 0;  // of the prompt's virtual tokens, wherever they are
};

/// One row of a request's batch: what the executor gets, and what only the backend needs.
struct RowRequest {
  Request request;
  std::vector<TokenId> padded_input_ids;
  std::optional<int> input_length;
  std::optional<int> max_tokens;
  std::optional<uint64_t> seed;
  PromptTensors prompt;
  RetentionTensors retention;
  RowTexts texts;
  DraftingConfig drafting;
  bool ignore_eos = false;
  bool perf_metrics = false;
  bool num_input_tokens = false;
  bool num_output_tokens = false;
};

/// One input tensor of the contract.
struct RequestField {
  enum class Use {
    kStore,           // `store` puts it into the row
    kIgnore,          // nothing to act on for a decoder-only model
    kLater,           // UNSUPPORTED when it has elements
    kLaterIfNonzero,  // UNSUPPORTED when any element is not zero, or any text not empty
  };

  std::string_view name;
  DataType type;  // kInvalid: what the configuration declares
  Use use;
  void (*store)(const RowValue&, RowRequest&) = nullptr;
};

/// The field of an input's name, or null: find_field for the engine model, find_text_field for a text model.
using FieldLookup = const RequestField* (*)(std::string_view name);

/// The field of an input's name, or null.
const RequestField* find_field(std::string_view name);

/// Stores one row of a tensor, or refuses it. A tensor without elements counts as absent.
/// Throws kInvalidArgument (dtype, shape or value; with name, found and wanted) and kUnsupported.
void store_field(const InputTensor& tensor, int row, int rows, RowRequest& request, FieldLookup find = find_field);

/// Throws kInvalidArgument when the configuration declares an input of the contract with another dtype.
void check_declared_inputs(const std::map<std::string, DataType, std::less<>>& inputs, FieldLookup find = find_field);

}  // namespace inflight::backend
