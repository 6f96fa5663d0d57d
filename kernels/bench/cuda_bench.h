#pragma once

#include <functional>
#include <string>

#include "kernels/cuda/cuda.h"

/// Each op's share of the GPU's measured limits. A family of kernels registers its cases; the program times the limits
/// first, in the same run.
namespace inflight::bench {

/// One measured case. `bytes` = the least that must move through device memory, `flops` = the operations.
struct Case {
  std::string op;     // "generation_attention"
  std::string shape;  // "S 64, context 4096, heads 32/8, D 128"
  double bytes = 0;
  double flops = 0;
};

class Bench {
 public:
  explicit Bench(cuda::CudaContext& context);

  cuda::CudaContext& context() { return context_; }

  /// Median microseconds of `run`, replayed from a graph. `run(i)` is called with i = 0, 1, ... so that it can rotate
  /// among buffers that together exceed the L2 cache.
  double time_us(const std::function<void(int)>& run, int rotations);

  /// Times and prints a line of JSON: op, shape, us, TB/s, TFLOP/s, share_of_limit and which limit binds.
  void measure(const Case& what, const std::function<void(int)>& run, int rotations);

  /// Runs for about `seconds` without a pause, after as long again to get there, and prints the line of `measure` with
  /// the watts, the clock (MHz at the end) and the joules of a run. What fills the GPU for longer than a moment runs
  /// into its power limit: there, the joules are its time. Needs NVML, the driver's library.
  void measure_sustained(const Case& what, const std::function<void(int)>& run, int rotations, double seconds);

  /// Measured in this run: bytes per second of a large read, operations per second of a large bf16 matrix product.
  double read_bandwidth() const { return read_bandwidth_; }
  double matrix_rate() const { return matrix_rate_; }

 private:
  void print(const Case& what, double us, const std::string& more) const;

  cuda::CudaContext& context_;
  double read_bandwidth_ = 0;
  double matrix_rate_ = 0;
};

using Family = std::function<void(Bench&)>;

/// At namespace scope: `static const Registered kCases("linear", bench_linear);` The name selects on the command line.
struct Registered {
  Registered(const std::string& name, Family family);
};

}  // namespace inflight::bench
