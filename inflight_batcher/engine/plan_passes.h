#pragma once

#include <set>
#include <string>
#include <vector>

#include "inflight_batcher/engine/plan.h"

namespace inflight {

/// The tensors of the epilogue that are the logits under another name (a rank's shard, before it is gathered).
std::set<std::string> wide_tensors(const Plan& plan);

/// The ops of a block with each `linear` without bias and the `gated_activation` right behind it made one
/// `linear_gated`, where nobody else reads what lies between them. `block` names it as marked outputs do ("prologue",
/// "epilogue", else the layers block).
std::vector<PlanOp> fuse_gated_linears(const Plan& plan, const std::vector<PlanOp>& ops, const std::string& block);

/// For one tensor-parallel rank, where nothing lies between a product and its sum with the residual: each `linear`
/// (and the `all_reduce` behind it) whose only reader is the norm right behind that adds it to the residual becomes a
/// `linear_add`, and the norm one of the residual alone.
std::vector<PlanOp> fuse_residual_adds(const Plan& plan, const std::vector<PlanOp>& ops, const std::string& block);

/// Each `rope_kv_write` and the `attention` right behind it made one `rope_attention` with the attributes of both,
/// where nobody else reads q and the two agree on what they both say (their layer and its heads).
std::vector<PlanOp> fuse_rope_attention(const Plan& plan, const std::vector<PlanOp>& ops, const std::string& block);

}  // namespace inflight
