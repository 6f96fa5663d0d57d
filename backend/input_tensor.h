#pragma once

#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "backend/triton_abi.h"
#include "inflight/error.h"

namespace inflight::backend {

/// One input of a request in one piece of host memory.
struct InputTensor {
  InputTensor() = default;
  InputTensor(InputTensor&&) = default;  // not copied: `bytes` may point into `storage`
  InputTensor& operator=(InputTensor&&) = default;

  std::string name;
  DataType type = DataType::kInvalid;
  std::vector<int64_t> shape;        // with the batch dimension, if the model has one
  std::span<const std::byte> bytes;  // valid while the request and `storage` live
  std::vector<std::byte> storage;    // used when the server holds the tensor in several pieces

  /// By the shape. Throws kInvalidArgument for a shape of more elements than there are bytes, or below zero.
  int64_t elements() const;
};

/// "INT32 [1, 7]", for error texts.
std::string describe(const InputTensor& tensor);

/// Throws kUnsupported for a tensor in device memory.
InputTensor read_input(TRITONBACKEND_Request* request, uint32_t index);

/// The share of one row of a batch in an input. Buffers of the server need not be aligned, so values are copied out.
class RowValue {
 public:
  /// `row` of `rows`: the elements are divided evenly. Throws kInvalidArgument where the buffer and the shape disagree.
  RowValue(const InputTensor& tensor, int row, int rows);

  const std::string& name() const { return tensor_->name; }
  DataType type() const { return tensor_->type; }
  const std::vector<int64_t>& tensor_shape() const { return tensor_->shape; }
  std::string description() const { return describe(*tensor_); }
  int64_t elements() const { return elements_; }

  /// Any element with a bit set; for texts: any that is not empty.
  bool any_content() const;

  /// All elements of the row. T must have the size of the tensor's type, which the caller has checked.
  template <typename T>
  std::vector<T> values() const {
    std::vector<T> result(static_cast<size_t>(elements_));
    if (!result.empty()) std::memcpy(result.data(), bytes_.data(), result.size() * sizeof(T));
    return result;
  }

  /// All texts of the row; the type must be BYTES.
  std::vector<std::string> texts() const;

  /// The only element of the row.
  template <typename T>
  T scalar() const {
    check(elements_ == 1, ErrorCode::kInvalidArgument, "input ", name(), " has ", elements_,
          " values a row; wanted one");
    return values<T>().front();
  }

  bool flag() const { return scalar<uint8_t>() != 0; }

  /// The only element, checked against a closed range; NaN is out of every range.
  template <typename T>
  T scalar_in(T least, T most) const {
    const T value = scalar<T>();
    check(value >= least && value <= most, ErrorCode::kInvalidArgument, "input ", name(), " is ", value, "; wanted ",
          least, " to ", most);
    return value;
  }

  template <typename T>
  T scalar_at_least(T least) const {
    const T value = scalar<T>();
    check(value >= least, ErrorCode::kInvalidArgument, "input ", name(), " is ", value, "; wanted ", least, " or more");
    return value;
  }

 private:
  const InputTensor* tensor_;
  int64_t elements_;
  std::span<const std::byte> bytes_;  // of the row
};

}  // namespace inflight::backend
