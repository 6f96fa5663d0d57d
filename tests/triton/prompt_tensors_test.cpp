#include <bit>
#include <cmath>

#include "backend/half.h"
#include "backend/request_fields.h"
#include "tests/triton/harness.h"

namespace inflight::backend {
namespace {

/// A row with a prompt of three tokens in four, after these inputs.
RowRequest row_with(const std::vector<TRITONBACKEND_Input>& inputs) {
  TRITONBACKEND_Request request;
  request.inputs = inputs;
  RowRequest row;
  for (uint32_t i = 0; i < inputs.size(); ++i) store_field(read_input(&request, i), 0, 1, row);
  row.request.input_ids = {1, 2, 3};
  store_prompt_tensors(row.prompt, 4, row.request);
  return row;
}

TRITONBACKEND_Input table_of(DataType type, const std::string& bytes, int64_t rows, int64_t width) {
  return {"prompt_embedding_table", type, {1, rows, width}, {bytes}};
}

TRITONBACKEND_Input extra_ids_of(const std::vector<uint64_t>& ids) {
  return {"prompt_table_extra_ids", DataType::kUint64, {1, static_cast<int64_t>(ids.size())}, {bytes_of(ids)}};
}

TRITONBACKEND_Input vocab_size(int32_t size) {
  return {"prompt_vocab_size", DataType::kInt32, {1, 1}, {bytes_of<int32_t>({size})}};
}

TEST(PromptTensors, TablesOfEveryType) {
  const std::vector<float> values = {1.5f, -2.0f, 0.25f, 8.0f, 0.0f, -1.0f};
  std::vector<uint16_t> half, bfloat;
  for (const float value : values) {
    half.push_back(to_half(value));
    bfloat.push_back(static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16));
  }
  for (const auto& [type, bytes] :
       {std::pair(DataType::kFp32, bytes_of(values)), std::pair(DataType::kFp16, bytes_of(half)),
        std::pair(DataType::kBf16, bytes_of(bfloat))}) {
    const RowRequest row = row_with({table_of(type, bytes, 2, 3)});
    ASSERT_TRUE(row.request.prompt_tuning.table);
    EXPECT_EQ(row.request.prompt_tuning.table->rows, 2);
    EXPECT_EQ(row.request.prompt_tuning.table->width, 3);
    EXPECT_EQ(row.request.prompt_tuning.table->values, values);
  }
}

TEST(PromptTensors, EveryHalfComesBack) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = from_half(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_GT(bits & 0x7fffu, 0x7c00u);
    } else {
      ASSERT_EQ(to_half(value), bits);
    }
  }
}

TEST(PromptTensors, VocabSizeNarrowsTheTable) {
  const auto table = table_of(DataType::kFp32, bytes_of<float>({1, 2, 3, 4}), 2, 2);
  EXPECT_EQ(row_with({table, vocab_size(1)}).request.prompt_tuning.table->rows, 1);
  EXPECT_EQ(row_with({table, vocab_size(0)}).request.prompt_tuning.table->rows, 2);
  expect_error(ErrorCode::kInvalidArgument, "prompt_vocab_size is 3; wanted at most the 2 rows",
               [&] { row_with({table, vocab_size(3)}); });
  expect_error(ErrorCode::kInvalidArgument, "prompt_vocab_size is 1; wanted at most the 0 rows",
               [&] { row_with({vocab_size(1)}); });
}

TEST(PromptTensors, ExtraIdsAreAsLongAsThePrompt) {
  EXPECT_EQ(row_with({extra_ids_of({7, 8, 9})}).request.prompt_tuning.extra_ids, (std::vector<uint64_t>{7, 8, 9}));
  EXPECT_EQ(row_with({extra_ids_of({7, 8, 9, 0})}).request.prompt_tuning.extra_ids, (std::vector<uint64_t>{7, 8, 9}));
  expect_error(ErrorCode::kInvalidArgument, "prompt_table_extra_ids has 2 values; wanted as many as the prompt has",
               [] { row_with({extra_ids_of({7, 8})}); });
}

TEST(PromptTensors, OtherTypesAreRefused) {
  expect_error(ErrorCode::kInvalidArgument, "input prompt_embedding_table is INT32 [1, 1, 2]; wanted FP16",
               [] { row_with({table_of(DataType::kInt32, bytes_of<int32_t>({1, 2}), 1, 2)}); });
}

}  // namespace
}  // namespace inflight::backend
