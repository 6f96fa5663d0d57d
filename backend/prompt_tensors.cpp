#include "backend/prompt_tensors.h"

#include <algorithm>
#include <bit>

#include "backend/half.h"

namespace inflight::backend {

namespace {

std::vector<float> floats_of(const RowValue& value) {
  if (value.type() == DataType::kFp32) return value.values<float>();
  const std::vector<uint16_t> stored = value.values<uint16_t>();
  std::vector<float> floats(stored.size());
  if (value.type() == DataType::kFp16)
    std::transform(stored.begin(), stored.end(), floats.begin(), from_half);
  else
    std::transform(stored.begin(), stored.end(), floats.begin(),
                   [](uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); });
  return floats;
}

}  // namespace

std::shared_ptr<PromptTable> read_prompt_table(const RowValue& value) {
  const bool is_float =
      value.type() == DataType::kFp16 || value.type() == DataType::kBf16 || value.type() == DataType::kFp32;
  const std::vector<int64_t>& shape = value.tensor_shape();
  check(is_float && shape.size() >= 2, ErrorCode::kInvalidArgument, "input ", value.name(), " is ", value.description(),
        "; wanted FP16, BF16 or FP32 of the shape [rows, hidden size]");
  auto table = std::make_shared<PromptTable>();
  table->width = static_cast<int>(shape.back());
  table->rows = static_cast<int>(value.elements() / shape.back());
  table->values = floats_of(value);
  return table;
}

void store_prompt_tensors(PromptTensors& tensors, size_t padded_length, Request& request) {
  const int rows = tensors.table ? tensors.table->rows : 0;
  check(tensors.vocab_size <= rows, ErrorCode::kInvalidArgument, "input prompt_vocab_size is ", tensors.vocab_size,
        "; wanted at most the ", rows, " rows of prompt_embedding_table");
  if (tensors.vocab_size > 0) tensors.table->rows = tensors.vocab_size;
  const size_t length = request.input_ids.size();
  if (tensors.extra_ids.size() == padded_length) tensors.extra_ids.resize(length);
  check(tensors.extra_ids.empty() || tensors.extra_ids.size() == length, ErrorCode::kInvalidArgument,
        "input prompt_table_extra_ids has ", tensors.extra_ids.size(),
        " values; wanted as many as the prompt has tokens, ", length);
  request.prompt_tuning.table = std::move(tensors.table);
  request.prompt_tuning.extra_ids = std::move(tensors.extra_ids);
}

}  // namespace inflight::backend
