#pragma once

#include <map>
#include <string>

#include "backend/triton_abi.h"

namespace inflight::backend {

/// The string values of a configuration's `parameters` section, by key.
using ParameterTexts = std::map<std::string, std::string, std::less<>>;

/// What the backend needs to know of a model's config.pbtxt, as the server parsed it.
struct ModelConfig {
  std::string name;
  uint64_t version = 0;
  int max_batch_size = 0;  // 0: tensors have no batch dimension
  bool decoupled = false;
  int max_queue_size = 0;  // of dynamic batching's default queue policy, where a configuration has one; 0 = unlimited
  std::map<std::string, DataType, std::less<>> inputs;
  std::map<std::string, DataType, std::less<>> outputs;
  ParameterTexts parameters;

  /// Text in, text out; else token ids.
  bool has_texts() const { return outputs.contains("text_output"); }

  /// An engine of its own; else, with texts, it works with another model's.
  bool has_engine() const { return !has_texts() || parameters.contains("gpt_model_path"); }
};

/// Reads the configuration. Throws kInvalidArgument when there is no `parameters` section, or when it declares a tensor
/// of the contract with another dtype.
ModelConfig read_model_config(TRITONBACKEND_Model* model);

/// The parameters of another model of the server that `asker` is in. Throws kUnavailable unless that one is ready.
ParameterTexts read_parameters_of(const std::string& model, TRITONBACKEND_Model* asker);

/// "TYPE_INT32" -> kInt32; kInvalid for what is unknown.
DataType parse_config_type(const std::string& text);

}  // namespace inflight::backend
