#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <filesystem>
#include <memory>
#include <typeindex>
#include <unordered_map>

#include "inflight/op_table.h"

namespace inflight::cuda {

/// What a context is made for. The limits size scratch memory once, so that nothing allocates while steps run.
struct CudaOptions {
  int device = 0;
  int max_num_tokens = 8192;   // of one step
  int max_batch_size = 512;    // sequences of one step
  int max_table_width = 4096;  // KV blocks of one sequence
  /// Every sum is taken in an order that does not depend on the rest of the batch: the same tokens alone and in
  /// company, at some cost in speed.
  bool batch_invariant = false;
  /// Where timed choices of matrix-product algorithms are kept; empty: they are timed anew by every process.
  std::filesystem::path tuning_cache;
};

/// One GPU, one stream: what the kernels of one rank run on. All ops are asynchronous in the stream and may be captured
/// into a graph; errors of earlier launches surface at the next synchronization.
/// Throws Error: kUnavailable (no such device, no driver, no memory), kUnsupported (no Hopper GPU).
class CudaContext final : public DeviceContext {
 public:
  explicit CudaContext(const CudaOptions& options);
  ~CudaContext() override;
  CudaContext(const CudaContext&) = delete;
  CudaContext& operator=(const CudaContext&) = delete;

  void copy(void* destination, const void* source, size_t bytes) override;
  void synchronize();

  const CudaOptions& options() const { return options_; }
  cudaStream_t stream() const { return stream_; }
  int num_sms() const { return num_sms_; }
  size_t max_shared_bytes() const { return max_shared_bytes_; }  // of one block

  /// What one family of kernels keeps between calls (handles, scratch memory): made by State(CudaContext&) at first
  /// use, which must come before a graph is captured.
  template <typename State>
  State& state() {
    std::shared_ptr<void>& slot = states_[typeid(State)];
    if (!slot) slot = std::make_shared<State>(*this);
    return *static_cast<State*>(slot.get());
  }

 private:
  CudaOptions options_;
  cudaStream_t stream_ = nullptr;
  int num_sms_ = 0;
  size_t max_shared_bytes_ = 0;
  std::unordered_map<std::type_index, std::shared_ptr<void>> states_;
};

/// Memory of the current device, uninitialized.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  /// Throws Error(kUnavailable) naming the number of bytes.
  explicit DeviceMemory(size_t bytes);
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept;
  DeviceMemory& operator=(DeviceMemory&& other) noexcept;
  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

/// Devices that the driver offers; 0 also where there is no driver.
int device_count();

/// The kernels for Hopper (sm_90a): bfloat16 activations and cache, float32 sums and logits.
const OpTable& op_table();

}  // namespace inflight::cuda
