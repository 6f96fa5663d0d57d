#include "backend/model_config.h"

#include <nlohmann/json.hpp>

#include "backend/outputs.h"
#include "backend/request_fields.h"
#include "backend/text/text_fields.h"
#include "backend/triton.h"

namespace inflight::backend {

namespace {

using Json = nlohmann::json;

constexpr int64_t kLatestVersion = -1;

/// Frees the message.
Json json_of(TRITONSERVER_Message* message) {
  const auto free_message = [](TRITONSERVER_Message* it) { log_if_error(TRITONSERVER_MessageDelete(it)); };
  const std::unique_ptr<TRITONSERVER_Message, decltype(free_message)> owner(message, free_message);
  const char* text = nullptr;
  size_t bytes = 0;
  require_ok(TRITONSERVER_MessageSerializeToJson(message, &text, &bytes));
  return Json::parse(text, text + bytes);
}

Json config_json(TRITONBACKEND_Model* model) {
  TRITONSERVER_Message* message = nullptr;
  require_ok(TRITONBACKEND_ModelConfig(model, kModelConfigVersion, &message));
  return json_of(message);
}

/// The value at a path of keys, or null where any of them is missing.
Json find(const Json& json, std::initializer_list<const char*> path) {
  const Json* here = &json;
  for (const char* key : path) {
    if (!here->is_object() || !here->contains(key)) return nullptr;
    here = &here->at(key);
  }
  return *here;
}

/// The server writes 64-bit numbers of the configuration as text.
int integer_at(const Json& json, std::initializer_list<const char*> path) {
  const Json value = find(json, path);
  if (value.is_number()) return value.get<int>();
  return value.is_string() ? std::stoi(value.get<std::string>()) : 0;
}

std::map<std::string, DataType, std::less<>> read_tensors(const Json& config, const char* section) {
  std::map<std::string, DataType, std::less<>> tensors;
  const Json declared = find(config, {section});
  for (const Json& tensor : declared) {
    tensors[tensor.at("name").get<std::string>()] = parse_config_type(tensor.at("data_type").get<std::string>());
  }
  return tensors;
}

ParameterTexts read_parameters(const Json& config) {
  const Json section = find(config, {"parameters"});
  check(section.is_object() && !section.empty(), ErrorCode::kInvalidArgument,
        "the model configuration has no parameters section; at least gpt_model_type and gpt_model_path are wanted");
  ParameterTexts parameters;
  for (const auto& [key, value] : section.items()) parameters[key] = value.value("string_value", "");
  return parameters;
}

}  // namespace

DataType parse_config_type(const std::string& text) {
  static const std::map<std::string, DataType> kTypes = {
      {"TYPE_BOOL", DataType::kBool},     {"TYPE_UINT8", DataType::kUint8},   {"TYPE_UINT16", DataType::kUint16},
      {"TYPE_UINT32", DataType::kUint32}, {"TYPE_UINT64", DataType::kUint64}, {"TYPE_INT8", DataType::kInt8},
      {"TYPE_INT16", DataType::kInt16},   {"TYPE_INT32", DataType::kInt32},   {"TYPE_INT64", DataType::kInt64},
      {"TYPE_FP16", DataType::kFp16},     {"TYPE_FP32", DataType::kFp32},     {"TYPE_FP64", DataType::kFp64},
      {"TYPE_STRING", DataType::kBytes},  {"TYPE_BF16", DataType::kBf16},
  };
  const auto found = kTypes.find(text);
  return found == kTypes.end() ? DataType::kInvalid : found->second;
}

ParameterTexts read_parameters_of(const std::string& model, TRITONBACKEND_Model* asker) {
  TRITONSERVER_Server* server = nullptr;
  require_ok(TRITONBACKEND_ModelServer(asker, &server));
  TRITONSERVER_Message* message = nullptr;
  const ErrorHandle refusal(
      TRITONSERVER_ServerModelConfig(server, model.c_str(), kLatestVersion, kModelConfigVersion, &message));
  if (refusal != nullptr) throw Error(ErrorCode::kUnavailable, concat("model ", model, " is not ready"));
  return read_parameters(json_of(message));
}

ModelConfig read_model_config(TRITONBACKEND_Model* model) {
  const Json json = config_json(model);
  ModelConfig config;
  const char* name = nullptr;
  require_ok(TRITONBACKEND_ModelName(model, &name));
  config.name = name;
  require_ok(TRITONBACKEND_ModelVersion(model, &config.version));
  config.max_batch_size = integer_at(json, {"max_batch_size"});
  config.decoupled = find(json, {"model_transaction_policy", "decoupled"}) == Json(true);
  config.max_queue_size = integer_at(json, {"dynamic_batching", "default_queue_policy", "max_queue_size"});
  config.inputs = read_tensors(json, "input");
  config.outputs = read_tensors(json, "output");
  config.parameters = read_parameters(json);
  check_declared_inputs(config.inputs, config.has_texts() ? find_text_field : find_field);
  check_declared_outputs(config.outputs);
  return config;
}

}  // namespace inflight::backend
