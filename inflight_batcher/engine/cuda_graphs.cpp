#include "inflight_batcher/engine/cuda_graphs.h"

#include "kernels/cuda/check.h"

namespace inflight {

namespace {

using cuda::check_cuda;

// Up to `last`, sizes are `gap` apart.
struct Spacing {
  int last;
  int gap;
};
constexpr Spacing kSpacings[] = {{4, 1}, {8, 2}, {32, 4}, {64, 8}, {256, 16}, {512, 32}, {1 << 30, 64}};

}  // namespace

std::vector<int> graph_sizes(int max_batch_size) {
  std::vector<int> sizes;
  int size = 0;
  for (const Spacing& spacing : kSpacings)
    while (size < spacing.last && size < max_batch_size) {
      size = std::min(size + spacing.gap, max_batch_size);
      sizes.push_back(size);
    }
  return sizes;
}

CudaGraphs::~CudaGraphs() {
  for (const auto& [size, graph] : graphs_) cudaGraphExecDestroy(graph);
}

void CudaGraphs::capture(int size, cudaStream_t stream, const std::function<void()>& work) {
  check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "a graph's capture");
  cudaGraph_t graph = nullptr;
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(stream, &graph);
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError();  // the capture's own complaint
    throw;
  }
  check_cuda(cudaStreamEndCapture(stream, &graph), "a graph's capture");
  cudaGraphExec_t executable = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  check_cuda(status, "a graph");
  graphs_[size] = executable;
  check_cuda(cudaGraphUpload(executable, stream), "a graph");
}

int CudaGraphs::size_for(int sequences) const {
  const auto found = graphs_.lower_bound(sequences);
  return found == graphs_.end() ? 0 : found->first;
}

void CudaGraphs::launch(int size, cudaStream_t stream) const {
  check_cuda(cudaGraphLaunch(graphs_.at(size), stream), "a captured step");
}

}  // namespace inflight
