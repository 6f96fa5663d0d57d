#include "kernels/cuda/gemm_tuner.h"

#include <algorithm>
#include <array>
#include <memory>

#include "kernels/cuda/check.h"
#include "kernels/cuda/plain_linear.h"

namespace inflight::cuda {
namespace {

constexpr int64_t kLeastWeightPool = int64_t{512} << 20;  // ten times the L2 cache
constexpr int kReplays = 3;
constexpr double kTimedMicroseconds = 300;  // about how long a replay shall take
constexpr int kMinRuns = 2, kMaxRuns = 40;

// Only to size the measurement: roughly what the GPU reads and multiplies in a microsecond.
constexpr double kBytesPerMicrosecond = 4e6, kFlopsPerMicrosecond = 7e8;

int64_t weight_bytes(const LinearKey& key) { return key.n * key.k * 2 * (key.gated ? 2 : 1); }
int64_t out_bytes(const LinearKey& key) { return key.m * key.n * (key.float_out ? 4 : 2); }

int runs_for(const LinearKey& key) {
  const double bytes = static_cast<double>(weight_bytes(key) + out_bytes(key));
  const double flops = static_cast<double>(weight_bytes(key)) * static_cast<double>(key.m);
  const double expected = std::max(bytes / kBytesPerMicrosecond, flops / kFlopsPerMicrosecond);
  return std::clamp(static_cast<int>(kTimedMicroseconds / expected), kMinRuns, kMaxRuns);
}

DeviceMemory largest(std::span<const LinearKey> keys, int64_t least, int64_t (*bytes)(const LinearKey&)) {
  for (const LinearKey& key : keys) least = std::max(least, bytes(key));
  return DeviceMemory(static_cast<size_t>(least));
}

using Event = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, decltype(&cudaEventDestroy)>;
using Graph = std::unique_ptr<std::remove_pointer_t<cudaGraph_t>, decltype(&cudaGraphDestroy)>;
using Executable = std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, decltype(&cudaGraphExecDestroy)>;

Event make_event() {
  cudaEvent_t event = nullptr;
  check_cuda(cudaEventCreate(&event), "no CUDA event");
  return {event, cudaEventDestroy};
}

// A call that throws leaves the stream out of capture.
Graph capture(cudaStream_t stream, int runs, const std::function<void(int)>& run) {
  cudaGraph_t graph = nullptr;
  check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  try {
    for (int i = 0; i < runs; ++i) run(i);
  } catch (...) {
    cudaStreamEndCapture(stream, &graph);
    cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  check_cuda(cudaStreamEndCapture(stream, &graph), "capture");
  return {graph, cudaGraphDestroy};
}

}  // namespace

double time_in_graph(CudaContext& context, int runs, const std::function<void(int)>& run) {
  const Graph graph = capture(context.stream(), runs, run);
  cudaGraphExec_t instance = nullptr;
  check_cuda(cudaGraphInstantiate(&instance, graph.get(), 0), "a graph to time");
  const Executable executable{instance, cudaGraphExecDestroy};
  const Event begin = make_event(), end = make_event();
  check_cuda(cudaGraphLaunch(instance, context.stream()), "a graph to time");
  std::array<float, kReplays> milliseconds{};
  for (float& each : milliseconds) {
    check_cuda(cudaEventRecord(begin.get(), context.stream()), "an event");
    check_cuda(cudaGraphLaunch(instance, context.stream()), "a graph to time");
    check_cuda(cudaEventRecord(end.get(), context.stream()), "an event");
    check_cuda(cudaEventSynchronize(end.get()), "what is timed");
    check_cuda(cudaEventElapsedTime(&each, begin.get(), end.get()), "an event");
  }
  std::sort(milliseconds.begin(), milliseconds.end());
  return milliseconds[kReplays / 2] * 1000.0 / runs;
}

GemmTuner::GemmTuner(LinearEngine& engine, std::span<const LinearKey> keys, CudaContext& context)
    : engine_(engine),
      context_(context),
      weights_(largest(keys, kLeastWeightPool, weight_bytes)),
      x_(largest(keys, 0, [](const LinearKey& key) { return std::max<int64_t>(key.m, kMaxSlimRows) * key.k * 2; })),
      bias_(largest(keys, 0, [](const LinearKey& key) { return key.n * 2; })),
      scratch_(largest(keys, 0, [](const LinearKey& key) { return key.gated ? 2 * out_bytes(key) : 0; })),
      out_(largest(keys, 0, out_bytes)) {
  uint32_t seed = 1;
  for (const DeviceMemory* memory : {&weights_, &x_, &bias_})
    fill_random(memory->data(), static_cast<int64_t>(memory->bytes() / 2), seed++, context);
}

double GemmTuner::time(const LinearKey& key, const LinearChoice& choice) {
  const int64_t bytes = (weight_bytes(key) + 255) / 256 * 256;
  const int64_t copies = std::max<int64_t>(1, static_cast<int64_t>(weights_.bytes()) / bytes);
  return time_in_graph(context_, runs_for(key), [&](int i) {
    const LinearMemory memory{x_.data(),
                              weights_.data() + i % copies * bytes,
                              key.bias ? bias_.data() : nullptr,
                              scratch_.data(),
                              out_.data(),
                              Activation::kSilu,
                              std::max<int64_t>(key.m, kMaxSlimRows)};
    engine_.run(key, memory, choice);
  });
}

std::vector<GemmTuner::Timed> GemmTuner::time(const LinearKey& key) {
  std::vector<Timed> timed;
  std::string refusals;
  for (const LinearChoice& choice : engine_.candidates(key)) {
    try {
      timed.push_back({choice, time(key, choice)});
    } catch (const Error& error) {  // the library may refuse at the last moment what it has proposed
      refusals += concat("; ", error.what());
    }
  }
  check(!timed.empty(), ErrorCode::kInternal, "linear ", text_of(key), ": no algorithm runs", refusals);
  std::stable_sort(timed.begin(), timed.end(),
                   [](const Timed& a, const Timed& b) { return a.microseconds < b.microseconds; });
  return timed;
}

}  // namespace inflight::cuda
