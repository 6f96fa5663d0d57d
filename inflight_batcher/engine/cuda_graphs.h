#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <map>
#include <vector>

namespace inflight {

/// The numbers of sequences that generation steps are captured for: finely spaced, up to max_batch_size itself.
std::vector<int> graph_sizes(int max_batch_size);

/// Captured generation steps by number of sequences. They share the engine's memory: none has any of its own.
class CudaGraphs {
 public:
  CudaGraphs() = default;
  ~CudaGraphs();
  CudaGraphs(const CudaGraphs&) = delete;
  CudaGraphs& operator=(const CudaGraphs&) = delete;

  /// Captures what `work` launches in the stream. It must have run before, so that it allocates nothing.
  void capture(int size, cudaStream_t stream, const std::function<void()>& work);

  /// The smallest captured size for so many sequences; 0: none is large enough.
  int size_for(int sequences) const;
  void launch(int size, cudaStream_t stream) const;
  int count() const { return static_cast<int>(graphs_.size()); }

 private:
  std::map<int, cudaGraphExec_t> graphs_;
};

}  // namespace inflight
