#pragma once

#include <memory>
#include <vector>

#include "inflight_batcher/engine/op_binding.h"

namespace inflight {

/// A program with what its operations point into.
struct BuiltProgram {
  Program program;
  std::vector<std::shared_ptr<std::vector<float>>> constants;
};

/// Binds the ops of one rank: the prologue on the first pipeline stage, the stage's layers, the epilogue on the last
/// one; then plans the activations' memory. `max_logits_rows` = rows of one epilogue slice. Collective: all ranks of
/// the tensor group build at the same time. Throws Error naming the op and the tensor, weight or attribute.
BuiltProgram build_program(const Plan& plan, const OpTable& table, WeightStore& weights, Communicator& tensor_group,
                           const Topology& topology, int stage, int64_t max_tokens, int64_t max_logits_rows);

}  // namespace inflight
