#include "inflight_batcher/engine/host_memory.h"

#include <sys/mman.h>

#include <algorithm>

#include "inflight/error.h"

namespace inflight {

HostMemory::HostMemory(size_t bytes) : bytes_(std::max<size_t>(bytes, 1)) {
  void* data = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  check(data != MAP_FAILED, ErrorCode::kUnavailable, "the system refuses ", bytes_, " bytes of memory");
  data_ = static_cast<std::byte*>(data);
}

HostMemory::~HostMemory() { ::munmap(data_, bytes_); }

}  // namespace inflight
