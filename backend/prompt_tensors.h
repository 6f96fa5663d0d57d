#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "backend/input_tensor.h"
#include "inflight_batcher/api/request.h"

namespace inflight::backend {

/// The tensors of one row that concern virtual tokens.
struct PromptTensors {
  std::shared_ptr<PromptTable> table;
  std::vector<uint64_t> extra_ids;
  int vocab_size = 0;  // 0: not given
};

/// prompt_embedding_table, [n, hidden] of FP16, BF16 or FP32. Throws kInvalidArgument for another type or rank.
std::shared_ptr<PromptTable> read_prompt_table(const RowValue& value);

/// Puts them into the request, whose prompt is there and stood in `padded_length` tokens. Extra ids may be padded as
/// the prompt was. Throws kInvalidArgument where the tensors do not fit each other.
void store_prompt_tensors(PromptTensors& tensors, size_t padded_length, Request& request);

}  // namespace inflight::backend
