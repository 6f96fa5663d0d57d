#pragma once

#include <string>
#include <vector>

#include "backend/triton_abi.h"

namespace inflight::backend {

/// The server's part of an input: its buffers lie where the test puts them.
extern "C" struct TRITONBACKEND_Input {
  std::string name;
  DataType type = DataType::kInvalid;
  std::vector<int64_t> shape;
  std::vector<std::string> pieces;
  MemoryType memory = MemoryType::kCpu;
};

extern "C" struct TRITONBACKEND_Request {
  std::vector<TRITONBACKEND_Input> inputs;
  std::vector<std::string> requested_outputs = {};
  std::vector<std::pair<std::string, std::string>> parameters = {};  // text ones
  uint64_t timeout_us = 0;
};

/// What the backend has logged in this process.
std::vector<std::string>& logged_messages();

}  // namespace inflight::backend
