#include "backend/input_tensor.h"

#include <algorithm>

#include "backend/triton.h"

namespace inflight::backend {

namespace {

/// Bytes of one element; 0 for BYTES, whose elements differ.
size_t size_of_type(DataType type) {
  static constexpr size_t kSizes[] = {0, 1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 4, 8, 0, 2};
  const auto index = static_cast<size_t>(type);
  return index < std::size(kSizes) ? kSizes[index] : 0;
}

std::span<const std::byte> read_piece(TRITONBACKEND_Input* input, uint32_t index, const std::string& name) {
  const void* data = nullptr;
  uint64_t bytes = 0;
  MemoryType memory = MemoryType::kCpu;
  int64_t memory_id = 0;
  require_ok(TRITONBACKEND_InputBuffer(input, index, &data, &bytes, &memory, &memory_id));
  check(memory != MemoryType::kGpu, ErrorCode::kUnsupported, "input ", name,
        " is in device memory; wanted host memory (set FORCE_CPU_ONLY_INPUT_TENSORS to yes)");
  return {static_cast<const std::byte*>(data), static_cast<size_t>(bytes)};
}

/// The bytes of row `row` of a BYTES tensor: rows have equally many texts, of any length.
std::span<const std::byte> texts_of_row(const InputTensor& tensor, int64_t first, int64_t count) {
  const auto length_at = [&](size_t offset) {
    uint32_t length = 0;
    check(offset + sizeof(length) <= tensor.bytes.size(), ErrorCode::kInvalidArgument, "input ", tensor.name,
          " ends within a text");
    std::memcpy(&length, tensor.bytes.data() + offset, sizeof(length));
    return sizeof(length) + length;
  };
  size_t begin = 0;
  for (int64_t i = 0; i < first; ++i) begin += length_at(begin);
  size_t end = begin;
  for (int64_t i = 0; i < count; ++i) end += length_at(end);
  check(end <= tensor.bytes.size(), ErrorCode::kInvalidArgument, "input ", tensor.name, " ends within a text");
  return tensor.bytes.subspan(begin, end - begin);
}

}  // namespace

int64_t InputTensor::elements() const {
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  const auto most = static_cast<int64_t>(bytes.size());  // an element takes a byte or more
  int64_t count = 1;
  for (const int64_t dim : shape) {
    check(dim > 0 && count <= most / dim, ErrorCode::kInvalidArgument, "input ", name, " is ", describe(*this),
          " but has ", most, " bytes");
    count *= dim;
  }
  return count;
}

std::string describe(const InputTensor& tensor) {
  std::string text = std::string(TRITONSERVER_DataTypeString(tensor.type)) + " [";
  for (size_t i = 0; i < tensor.shape.size(); ++i) text += (i ? ", " : "") + std::to_string(tensor.shape[i]);
  return text + "]";
}

InputTensor read_input(TRITONBACKEND_Request* request, uint32_t index) {
  TRITONBACKEND_Input* input = nullptr;
  require_ok(TRITONBACKEND_RequestInputByIndex(request, index, &input));
  const char* name = nullptr;
  const int64_t* shape = nullptr;
  uint32_t dims = 0;
  uint32_t pieces = 0;
  InputTensor tensor;
  require_ok(TRITONBACKEND_InputProperties(input, &name, &tensor.type, &shape, &dims, nullptr, &pieces));
  tensor.name = name;
  tensor.shape.assign(shape, shape + dims);
  if (pieces == 1) {
    tensor.bytes = read_piece(input, 0, tensor.name);
    return tensor;
  }
  for (uint32_t i = 0; i < pieces; ++i) {
    const auto piece = read_piece(input, i, tensor.name);
    tensor.storage.insert(tensor.storage.end(), piece.begin(), piece.end());
  }
  tensor.bytes = tensor.storage;
  return tensor;
}

RowValue::RowValue(const InputTensor& tensor, int row, int rows)
    : tensor_(&tensor), elements_(tensor.elements() / rows) {
  if (tensor.type == DataType::kBytes) {
    bytes_ = texts_of_row(tensor, row * elements_, elements_);
    return;
  }
  const size_t row_bytes = static_cast<size_t>(elements_) * size_of_type(tensor.type);
  check(tensor.bytes.size() == row_bytes * static_cast<size_t>(rows), ErrorCode::kInvalidArgument, "input ",
        tensor.name, " is ", describe(tensor), " but has ", tensor.bytes.size(), " bytes; wanted ", row_bytes * rows);
  bytes_ = tensor.bytes.subspan(row_bytes * static_cast<size_t>(row), row_bytes);
}

std::vector<std::string> RowValue::texts() const {
  std::vector<std::string> texts;
  for (auto rest = bytes_; !rest.empty();) {
    uint32_t length = 0;
    std::memcpy(&length, rest.data(), sizeof(length));
    texts.emplace_back(reinterpret_cast<const char*>(rest.data()) + sizeof(length), length);
    rest = rest.subspan(sizeof(length) + length);
  }
  return texts;
}

bool RowValue::any_content() const {
  // A text's length prefix is zero exactly when the text is empty, so one test serves all types.
  return std::any_of(bytes_.begin(), bytes_.end(), [](std::byte b) { return b != std::byte{0}; });
}

}  // namespace inflight::backend
