#pragma once

#include <chrono>

#include "kernels/cuda/cuda.h"

namespace inflight::bench {

/// The energy that the context's GPU takes, by NVML (libnvidia-ml.so.1, which comes with the driver). Its counter moves
/// some ten times a second: start() and read() wait for that, and the GPU must have work meanwhile.
/// Throws Error(kUnavailable) where that is missing or counts no energy.
class PowerMeter {
 public:
  struct Reading {
    double watts;  // on average since start()
    unsigned sm_mhz;
  };

  static constexpr double kMostSecondsOfReading = 0.15;

  explicit PowerMeter(cuda::CudaContext& context);
  void start();
  Reading read() const;

 private:
  struct Mark {
    unsigned long long millijoules = 0;
    std::chrono::steady_clock::time_point time;
  };
  Mark look() const;
  Mark next_move() const;

  void* device_ = nullptr;
  int (*total_energy_)(void*, unsigned long long*) = nullptr;
  int (*clock_)(void*, int, unsigned*) = nullptr;
  Mark start_;
};

}  // namespace inflight::bench
