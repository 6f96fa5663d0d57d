#pragma once

#include "inflight_batcher/engine/op_binding.h"

namespace inflight {

/// Binds the ops of one rank: the prologue on the first pipeline stage, the stage's layers, the epilogue on the last
/// one; then plans the activations' memory. `max_logits_rows` = rows of one epilogue slice. Collective: all ranks of
/// the tensor group build at the same time. `activation` is the dtype of what lies between the ops; logits are float32.
/// The program points into `weights`. Throws Error naming the op and the tensor, weight or attribute.
Program build_program(const Plan& plan, const OpTable& table, WeightSource& weights, Communicator& tensor_group,
                      const Topology& topology, int stage, int64_t max_tokens, int64_t max_logits_rows,
                      DType activation = DType::kFloat32);

}  // namespace inflight
