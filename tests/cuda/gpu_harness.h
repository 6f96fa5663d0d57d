#pragma once

#include "kernels/cuda/check.h"
#include "kernels/cuda/cuda.h"
#include "tests/kernels/harness.h"

/// What a GPU test needs on top of the kernels' harness: device tensors that begin poisoned, and a context.
namespace inflight::test {

/// A test fixture that skips, with the reason, where there is no GPU.
class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device";
  }
};

/// Never destroyed: at the end of the process cuBLASLt, loaded after it, has torn itself down before.
inline cuda::CudaContext& gpu() {
  static cuda::CudaContext& context = *new cuda::CudaContext(cuda::CudaOptions{});
  return context;
}

/// A device copy of a host tensor, guard included; brought back by host().
class GpuTensor {
 public:
  explicit GpuTensor(const Tensor& source)
      : host_(source), memory_(host_.view().bytes() + kGuard), view_(host_.view()) {
    cuda::check_cuda(cudaMemset(memory_.data(), 0xff, memory_.bytes()), "poison");
    cuda::check_cuda(cudaMemcpy(memory_.data(), host_.view().data, host_.view().bytes(), cudaMemcpyHostToDevice), "up");
    // The two above may return before they are done, and the context's stream does not wait for them.
    cuda::check_cuda(cudaDeviceSynchronize(), "up");
    view_.data = memory_.data();
  }
  GpuTensor(DType dtype, std::initializer_list<int64_t> dims) : GpuTensor(Tensor(dtype, dims)) {}
  const TensorView& view() const { return view_; }
  operator TensorView() const { return view_; }

  /// What the GPU has made of it, once its work is done; fails the test where it wrote past the end.
  Tensor host() const {
    gpu().synchronize();
    Tensor out = host_;
    cuda::check_cuda(cudaMemcpy(out.view().data, memory_.data(), out.view().bytes(), cudaMemcpyDeviceToHost), "down");
    std::vector<unsigned char> guard(kGuard);
    cuda::check_cuda(cudaMemcpy(guard.data(), memory_.data() + out.view().bytes(), kGuard, cudaMemcpyDeviceToHost),
                     "guard");
    EXPECT_TRUE(std::all_of(guard.begin(), guard.end(), [](unsigned char b) { return b == 0xff; }))
        << "wrote past the end of " << describe(view_);
    return out;
  }

 private:
  static constexpr size_t kGuard = 256;

  Tensor host_;
  cuda::DeviceMemory memory_;
  TensorView view_;
};

}  // namespace inflight::test
