#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "inflight_batcher/engine/plan.h"
#include "inflight_batcher/engine/safetensors.h"

namespace inflight {

/// The weights of one rank in host memory. A weight that is one stored tensor, whole or a run of its rows, is used
/// where the file is mapped; everything else (concatenated, transposed, sliced by columns) is assembled into memory of
/// its own, one weight at a time.
class WeightStore {
 public:
  /// `tp_rank` of `tp_size` picks the shard of every weight.
  WeightStore(const Plan& plan, int tp_rank, int tp_size);
  ~WeightStore();

  /// Loads on first use. The view is absent where this rank has no part of the weight (Shard::kFirstRank).
  /// Throws Error naming the weight, its file and what does not fit.
  TensorView get(const std::string& name);

  /// Bytes of all weights loaded so far.
  size_t bytes() const { return bytes_; }

 private:
  struct Part;
  Part locate(const std::string& weight, const PlanWeight& recipe, const PlanSource& source);
  TensorView assemble(const PlanWeight& recipe, const std::vector<Part>& parts);
  const SafetensorsFile& open(const std::string& file);

  const Plan& plan_;
  int tp_rank_;
  int tp_size_;
  size_t bytes_ = 0;
  std::map<std::string, std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, TensorView> loaded_;
  std::vector<std::unique_ptr<std::byte[]>> owned_;
};

/// The units [first, last) of `units` that a rank owns; with fewer units than ranks, neighbours share one.
std::pair<int64_t, int64_t> units_of_rank(int64_t units, int rank, int size);

}  // namespace inflight
