#include "tests/triton/fake_triton.h"

// The few symbols of the server that the backend's parsers use.

namespace inflight::backend {

std::vector<std::string>& logged_messages() {
  static std::vector<std::string> messages;
  return messages;
}

extern "C" {

struct TRITONSERVER_Error {
  TritonCode code;
  std::string message;
};

TRITONSERVER_Error* TRITONSERVER_ErrorNew(TritonCode code, const char* message) {
  return new TRITONSERVER_Error{code, message};
}

void TRITONSERVER_ErrorDelete(TRITONSERVER_Error* error) { delete error; }

TritonCode TRITONSERVER_ErrorCode(TRITONSERVER_Error* error) { return error->code; }

const char* TRITONSERVER_ErrorMessage(TRITONSERVER_Error* error) { return error->message.c_str(); }

TRITONSERVER_Error* TRITONSERVER_LogMessage(LogLevel, const char*, int, const char* message) {
  logged_messages().emplace_back(message);
  return nullptr;
}

const char* TRITONSERVER_DataTypeString(DataType type) {
  static constexpr const char* kNames[] = {"<invalid>", "BOOL",  "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16",
                                           "INT32",     "INT64", "FP16",  "FP32",   "FP64",   "BYTES",  "BF16"};
  return kNames[static_cast<int>(type)];
}

TRITONSERVER_Error* TRITONBACKEND_RequestInputByIndex(TRITONBACKEND_Request* request, uint32_t index,
                                                      TRITONBACKEND_Input** input) {
  *input = &request->inputs.at(index);
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_InputProperties(TRITONBACKEND_Input* input, const char** name, DataType* type,
                                                  const int64_t** shape, uint32_t* dims, uint64_t*, uint32_t* pieces) {
  *name = input->name.c_str();
  *type = input->type;
  *shape = input->shape.data();
  *dims = static_cast<uint32_t>(input->shape.size());
  *pieces = static_cast<uint32_t>(input->pieces.size());
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_InputBuffer(TRITONBACKEND_Input* input, uint32_t index, const void** data,
                                              uint64_t* bytes, MemoryType* memory, int64_t*) {
  *data = input->pieces.at(index).data();
  *bytes = input->pieces.at(index).size();
  *memory = input->memory;
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_RequestInputCount(TRITONBACKEND_Request* request, uint32_t* count) {
  *count = static_cast<uint32_t>(request->inputs.size());
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_RequestOutputCount(TRITONBACKEND_Request* request, uint32_t* count) {
  *count = static_cast<uint32_t>(request->requested_outputs.size());
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_RequestOutputName(TRITONBACKEND_Request* request, uint32_t index, const char** name) {
  *name = request->requested_outputs.at(index).c_str();
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_RequestParameterCount(TRITONBACKEND_Request* request, uint32_t* count) {
  *count = static_cast<uint32_t>(request->parameters.size());
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_RequestParameter(TRITONBACKEND_Request* request, uint32_t index, const char** key,
                                                   ParameterType* type, const void** value) {
  *key = request->parameters.at(index).first.c_str();
  *type = ParameterType::kString;
  *value = request->parameters.at(index).second.c_str();
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_InferenceRequestTimeoutMicroseconds(TRITONBACKEND_Request* request,
                                                                      uint64_t* timeout) {
  *timeout = request->timeout_us;
  return nullptr;
}

// The parser knows outputs by name; none is ever written here.
TRITONSERVER_Error* TRITONBACKEND_ResponseOutput(TRITONBACKEND_Response*, TRITONBACKEND_Output**, const char* name,
                                                 DataType, const int64_t*, uint32_t) {
  return TRITONSERVER_ErrorNew(TritonCode::kInternal, name);
}

TRITONSERVER_Error* TRITONBACKEND_OutputBuffer(TRITONBACKEND_Output*, void**, uint64_t, MemoryType*, int64_t*) {
  return TRITONSERVER_ErrorNew(TritonCode::kInternal, "no buffer");
}

}  // extern "C"

}  // namespace inflight::backend
