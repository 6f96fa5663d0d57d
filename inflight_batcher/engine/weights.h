#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "inflight_batcher/engine/host_memory.h"
#include "inflight_batcher/engine/plan.h"
#include "inflight_batcher/engine/weight_parts.h"
#include "inflight_batcher/engine/weight_source.h"

namespace inflight {

/// The weights of one rank as its checkpoint has them, in host memory. A weight that is one stored tensor, whole or a
/// run of its rows, is used where the file is mapped; everything else (concatenated, transposed, sliced by columns) is
/// assembled into memory of its own, one weight at a time.
class WeightStore final : public WeightSource {
 public:
  /// `tp_rank` of `tp_size` picks the shard of every weight.
  WeightStore(const Plan& plan, int tp_rank, int tp_size);
  ~WeightStore() override;

  /// Loads on first use.
  TensorView get(const std::string& name) override;
  TensorView constant(const std::vector<float>& values) override;
  size_t bytes() const override { return bytes_; }

  /// What get() would assemble: the weight's shape on this rank, with the dtype of the checkpoint and no data, and its
  /// parts, end to end along axis 0. No parts where this rank has none of the weight. Throws as get() does.
  struct Layout {
    TensorView shape;
    std::vector<WeightPart> parts;
  };
  Layout layout(const std::string& name);

 private:
  WeightPart locate(const std::string& weight, const PlanWeight& recipe, const PlanSource& source);
  TensorView assemble(const Layout& layout);
  const SafetensorsFile& open(const std::string& file);

  const Plan& plan_;
  int tp_rank_;
  int tp_size_;
  size_t bytes_ = 0;
  std::map<std::string, std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, TensorView> loaded_;
  std::vector<std::unique_ptr<HostMemory>> owned_;  // not the allocator's, which keeps what is freed
  std::vector<std::vector<float>> constants_;
};

/// The plan's description of a weight. Throws Error(kInvalidArgument) naming it.
const PlanWeight& find_weight(const Plan& plan, const std::string& name);

/// A text that is the same for two weights of a rank exactly when they hold the same numbers (a tied head and its
/// embedding): their sources and the rank's shape.
std::string weight_identity(const PlanWeight& weight, const std::vector<int64_t>& local_shape);

/// The units [first, last) of `units` that a rank owns; with fewer units than ranks, neighbours share one.
std::pair<int64_t, int64_t> units_of_rank(int64_t units, int rank, int size);

}  // namespace inflight
