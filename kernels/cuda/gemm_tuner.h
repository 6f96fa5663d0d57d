#pragma once

#include <functional>
#include <span>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_engine.h"

namespace inflight::cuda {

/// Microseconds of one of `runs` calls of run(0), run(1), ... one after the other in the context's stream, replayed
/// from a graph: the median of three replays. The calls must be capturable.
double time_in_graph(CudaContext& context, int runs, const std::function<void(int)>& run);

/// Times the candidates of products on random data. The weights rotate through more memory than the L2 cache holds, as
/// they do when a model's layers follow one another.
class GemmTuner {
 public:
  /// Takes memory for the largest of the keys. Throws Error(kUnavailable) if there is too little.
  GemmTuner(LinearEngine& engine, std::span<const LinearKey> keys, CudaContext& context);

  struct Timed {
    LinearChoice choice;
    double microseconds;
  };
  /// All candidates that ran, the fastest first; never empty.
  std::vector<Timed> time(const LinearKey& key);

 private:
  double time(const LinearKey& key, const LinearChoice& choice);

  LinearEngine& engine_;
  CudaContext& context_;
  DeviceMemory weights_, x_, bias_, scratch_, out_;
};

}  // namespace inflight::cuda
