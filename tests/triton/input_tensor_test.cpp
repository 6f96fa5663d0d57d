#include "backend/input_tensor.h"

#include <cmath>

#include "tests/triton/harness.h"

namespace inflight::backend {
namespace {

TRITONBACKEND_Input input(DataType type, std::vector<int64_t> shape, std::vector<std::string> pieces) {
  return {"x", type, std::move(shape), std::move(pieces)};
}

TEST(InputTensor, OnePieceIsNotCopied) {
  TRITONBACKEND_Request request{{input(DataType::kInt32, {1, 3}, {bytes_of<int32_t>({4, 5, 6})})}};
  const InputTensor tensor = read_input(&request, 0);
  EXPECT_EQ(describe(tensor), "INT32 [1, 3]");
  EXPECT_EQ(static_cast<const void*>(tensor.bytes.data()), request.inputs[0].pieces[0].data());
  EXPECT_EQ(RowValue(tensor, 0, 1).values<int32_t>(), (std::vector<int32_t>{4, 5, 6}));
}

TEST(InputTensor, SeveralPiecesAreJoined) {
  const std::string bytes = bytes_of<int32_t>({4, 5, 6});
  TRITONBACKEND_Request request{{input(DataType::kInt32, {1, 3}, {bytes.substr(0, 5), bytes.substr(5)})}};
  const InputTensor tensor = read_input(&request, 0);
  const InputTensor moved = read_input(&request, 0);
  EXPECT_EQ(RowValue(moved, 0, 1).values<int32_t>(), (std::vector<int32_t>{4, 5, 6}));
  EXPECT_EQ(RowValue(tensor, 0, 1).elements(), 3);
}

TEST(InputTensor, DeviceMemoryIsRefused) {
  TRITONBACKEND_Request request{{input(DataType::kInt32, {1, 1}, {bytes_of<int32_t>({4})})}};
  request.inputs[0].memory = MemoryType::kGpu;
  expect_error(ErrorCode::kUnsupported, "input x is in device memory; wanted host memory",
               [&] { read_input(&request, 0); });
}

InputTensor tensor(TRITONBACKEND_Request& request) { return read_input(&request, 0); }

TEST(RowValue, RowsShareTheElements) {
  TRITONBACKEND_Request request{{input(DataType::kFp32, {2, 2}, {bytes_of<float>({1, 2, 3, 4})})}};
  const InputTensor it = tensor(request);
  EXPECT_EQ(RowValue(it, 1, 2).values<float>(), (std::vector<float>{3, 4}));
}

TEST(RowValue, ScalarsAreAloneInTheirRow) {
  TRITONBACKEND_Request request{{input(DataType::kUint64, {2, 1}, {bytes_of<uint64_t>({1, 1ULL << 40})})}};
  const InputTensor it = tensor(request);
  EXPECT_EQ(RowValue(it, 1, 2).scalar<uint64_t>(), 1ULL << 40);
  expect_error(ErrorCode::kInvalidArgument, "input x has 2 values a row; wanted one",
               [&] { RowValue(it, 0, 1).scalar<uint64_t>(); });
}

TEST(RowValue, RangesAreClosedAndKnowNoNan) {
  TRITONBACKEND_Request request{{input(DataType::kFp32, {3, 1}, {bytes_of<float>({0, 1, NAN})})}};
  const InputTensor it = tensor(request);
  EXPECT_EQ(RowValue(it, 0, 3).scalar_in(0.0f, 1.0f), 0.0f);
  EXPECT_EQ(RowValue(it, 1, 3).scalar_in(0.0f, 1.0f), 1.0f);
  expect_error(ErrorCode::kInvalidArgument, "input x is 1; wanted 0 to 0.5",
               [&] { RowValue(it, 1, 3).scalar_in(0.0f, 0.5f); });
  expect_error(ErrorCode::kInvalidArgument, "input x is nan", [&] { RowValue(it, 2, 3).scalar_in(0.0f, 1.0f); });
  expect_error(ErrorCode::kInvalidArgument, "input x is nan", [&] { RowValue(it, 2, 3).scalar_at_least(0.0f); });
}

TEST(RowValue, BufferAndShapeMustAgree) {
  TRITONBACKEND_Request request{{input(DataType::kInt32, {1, 3}, {bytes_of<int32_t>({4, 5})})}};
  const InputTensor it = tensor(request);
  expect_error(ErrorCode::kInvalidArgument, "input x is INT32 [1, 3] but has 8 bytes; wanted 12",
               [&] { RowValue(it, 0, 1); });
}

TEST(RowValue, ShapesOfMoreElementsThanBytes) {
  constexpr int64_t kHuge = int64_t{1} << 62;  // four times as many are 0 of 64 bits
  for (const std::vector<int64_t>& shape :
       std::vector<std::vector<int64_t>>{{1, kHuge}, {4, kHuge}, {1, -1}, {-1, -1}}) {
    TRITONBACKEND_Request request{{input(DataType::kInt32, shape, {""})}};
    const InputTensor it = tensor(request);
    expect_error(ErrorCode::kInvalidArgument, "input x is " + describe(it) + " but has 0 bytes",
                 [&] { RowValue(it, 0, 1); });
  }
  TRITONBACKEND_Request request{{input(DataType::kInt32, {kHuge, kHuge, 0}, {""})}};
  const InputTensor it = tensor(request);
  EXPECT_EQ(RowValue(it, 0, 1).elements(), 0);
}

TEST(RowValue, TextsOfRows) {
  TRITONBACKEND_Request request{{input(DataType::kBytes, {2, 2}, {serialized({"", "", "json", ""})})}};
  const InputTensor it = tensor(request);
  EXPECT_FALSE(RowValue(it, 0, 2).any_content());
  EXPECT_TRUE(RowValue(it, 1, 2).any_content());
}

TEST(RowValue, TextsThatEndTooEarly) {
  const std::string whole = serialized({"json"});
  for (const size_t size : {size_t{2}, size_t{6}}) {
    TRITONBACKEND_Request request{{input(DataType::kBytes, {1, 1}, {whole.substr(0, size)})}};
    const InputTensor it = tensor(request);
    expect_error(ErrorCode::kInvalidArgument, "input x ends within a text", [&] { RowValue(it, 0, 1); });
  }
}

}  // namespace
}  // namespace inflight::backend
