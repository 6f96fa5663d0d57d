#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "inflight/tensor.h"

namespace inflight {

/// A safetensors file, memory-mapped read-only (format: 8 bytes little-endian header length, JSON header, raw tensors).
class SafetensorsFile {
 public:
  struct Tensor {
    DType dtype = DType::kFloat32;
    std::vector<int64_t> shape;
    const std::byte* data = nullptr;  // inside the mapping
  };

  /// Throws Error: kNotFound, kInvalidArgument (a header that lies about sizes, offsets or shapes).
  explicit SafetensorsFile(const std::filesystem::path& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  /// Throws Error naming the file and the tensor: kNotFound, kUnsupported (a dtype that DType does not have).
  const Tensor& at(const std::string& name) const;

  /// Tells the kernel that pages of this range may go (they were copied elsewhere).
  void release(const std::byte* begin, size_t bytes) const;

 private:
  void read_header();

  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  std::map<std::string, Tensor> tensors_;
  std::map<std::string, std::string> foreign_;  // tensor -> dtype without a DType: only using it is an error
};

}  // namespace inflight
