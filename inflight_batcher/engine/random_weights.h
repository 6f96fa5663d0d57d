#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "inflight_batcher/engine/plan.h"
#include "inflight_batcher/engine/weight_source.h"

namespace inflight {

/// A rank's share of a weight by the plan alone, no file opened. Throws Error(kInvalidArgument) where the plan does not
/// say enough to divide it.
std::vector<int64_t> local_shape(const Plan& plan, const std::string& name, int tp_rank, int tp_size);

/// How random weights are drawn: `mean` + `spread` · (about normal). Matrices and biases lie around 0, other vectors
/// (norms) around 1, so that activations stay in range through any number of layers.
struct RandomScale {
  float mean = 0.0f;
  float spread = 0.02f;
};
RandomScale random_scale(const std::string& name, size_t rank);

/// The seed of a weight's numbers: the same name, the same numbers.
uint64_t random_seed(const std::string& name);

/// Weights of the plan's shapes, drawn at random in host memory (float32 where the plan has it, else bfloat16): to
/// measure speed without a checkpoint.
class RandomWeights final : public WeightSource {
 public:
  RandomWeights(const Plan& plan, int tp_rank, int tp_size) : plan_(plan), tp_rank_(tp_rank), tp_size_(tp_size) {}

  TensorView get(const std::string& name) override;
  TensorView constant(const std::vector<float>& values) override;
  size_t bytes() const override { return bytes_; }

 private:
  const Plan& plan_;
  int tp_rank_;
  int tp_size_;
  size_t bytes_ = 0;
  std::map<std::string, TensorView> drawn_;
  std::vector<std::unique_ptr<std::byte[]>> owned_;
  std::vector<std::vector<float>> constants_;
};

}  // namespace inflight
