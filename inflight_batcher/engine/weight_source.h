#pragma once

#include <string>
#include <vector>

#include "inflight/tensor.h"

namespace inflight {

/// Where the ops of one rank find what does not change from step to step, in the memory that its kernels read.
class WeightSource {
 public:
  virtual ~WeightSource() = default;

  /// This rank's part of a plan's weight; absent where it has none (Shard::kFirstRank). The view stays valid as long as
  /// the source, its contents may come later (see the implementation).
  /// Throws Error naming the weight, its file and what does not fit.
  virtual TensorView get(const std::string& name) = 0;

  /// Numbers of an op's attribute as float32.
  virtual TensorView constant(const std::vector<float>& values) = 0;

  /// Bytes of all weights handed out so far; a tied one counts once.
  virtual size_t bytes() const = 0;
};

}  // namespace inflight
