#pragma once

#include <map>
#include <string>

#include "backend/triton_abi.h"

namespace inflight::backend {

/// What the backend needs to know of a model's config.pbtxt, as the server parsed it.
struct ModelConfig {
  std::string name;
  uint64_t version = 0;
  int max_batch_size = 0;  // 0: tensors have no batch dimension
  bool decoupled = false;
  int max_queue_size = 0;  // of dynamic batching's default queue policy, where a configuration has one; 0 = unlimited
  std::map<std::string, DataType, std::less<>> inputs;
  std::map<std::string, DataType, std::less<>> outputs;
  std::map<std::string, std::string, std::less<>> parameters;  // string values

  /// Text in, text out; else token ids.
  bool has_texts() const { return outputs.contains("text_output"); }
};

/// Reads the configuration. Throws kInvalidArgument when there is no `parameters` section, or when it declares a tensor
/// of the contract with another dtype.
ModelConfig read_model_config(TRITONBACKEND_Model* model);

/// "TYPE_INT32" -> kInt32; kInvalid for what is unknown.
DataType parse_config_type(const std::string& text);

}  // namespace inflight::backend
