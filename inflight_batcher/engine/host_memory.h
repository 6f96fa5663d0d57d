#pragma once

#include <cstddef>

namespace inflight {

/// Memory from the system, page-aligned and zero, taken when touched.
class HostMemory {
 public:
  explicit HostMemory(size_t bytes);
  ~HostMemory();
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;
  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace inflight
