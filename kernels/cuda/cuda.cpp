#include "kernels/cuda/cuda.h"

#include <utility>

#include "kernels/cuda/check.h"

namespace inflight::cuda {

DeviceMemory::DeviceMemory(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, bytes);
  if (status != cudaSuccess) check_cuda(status, concat("the GPU refuses ", bytes, " bytes of memory").c_str());
  data_ = static_cast<std::byte*>(data);
}

DeviceMemory::~DeviceMemory() {
  if (data_) cudaFree(data_);
}

DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // no driver is an answer, not a failure of the next call
    return 0;
  }
  return count;
}

CudaContext::CudaContext(const CudaOptions& options) : options_(options) {
  const int count = device_count();
  check(options.device >= 0 && options.device < count, ErrorCode::kUnavailable, "CUDA device ", options.device,
        " is wanted, there are ", count);
  check_cuda(cudaSetDevice(options.device), "the CUDA device cannot be taken");
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, options.device), "the CUDA device cannot be asked");
  check(properties.major == 9, ErrorCode::kUnsupported, "CUDA device ", options.device, " is ", properties.name,
        " of compute capability ", properties.major, ".", properties.minor, "; the kernels are for 9.0 (Hopper)");
  num_sms_ = properties.multiProcessorCount;
  max_shared_bytes_ = properties.sharedMemPerBlockOptin;
  check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "no CUDA stream");
}

CudaContext::~CudaContext() {
  cudaStreamSynchronize(stream_);
  states_.clear();  // before the stream that their work ran in
  cudaStreamDestroy(stream_);
}

void CudaContext::copy(void* destination, const void* source, size_t bytes) {
  check_cuda(cudaMemcpyAsync(destination, source, bytes, cudaMemcpyDefault, stream_), "a copy on the GPU");
}

void CudaContext::synchronize() { check_cuda(cudaStreamSynchronize(stream_), "the GPU's work"); }

}  // namespace inflight::cuda
