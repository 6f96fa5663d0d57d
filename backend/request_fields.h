#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "backend/input_tensor.h"
#include "backend/retention_tensors.h"
#include "inflight_batcher/api/request.h"

namespace inflight::backend {

/// One row of a request's batch: what the executor gets, and what only the backend needs.
struct RowRequest {
  Request request;
  std::vector<TokenId> padded_input_ids;
  std::optional<int> input_length;
  std::optional<int> max_tokens;
  std::optional<uint64_t> seed;
  RetentionTensors retention;
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

/// The field of an input's name, or null.
const RequestField* find_field(std::string_view name);

/// Stores one row of a tensor, or refuses it. A tensor without elements counts as absent.
/// Throws kInvalidArgument (dtype, shape or value; with name, found and wanted) and kUnsupported.
void store_field(const InputTensor& tensor, int row, int rows, RowRequest& request);

/// Throws kInvalidArgument when the configuration declares an input of the contract with another dtype.
void check_declared_inputs(const std::map<std::string, DataType, std::less<>>& inputs);

}  // namespace inflight::backend
