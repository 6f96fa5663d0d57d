#include "inflight_batcher/engine/plan_passes.h"

#include <algorithm>

namespace inflight {

namespace {

// The names under which a block's tensors are read outside it.
std::set<std::string> names_read_outside(const Plan& plan, const std::string& block) {
  std::set<std::string> names = {"logits"};
  for (const auto& [entry, exit] : plan.carry) names.insert({entry, exit});
  for (const PlanOutput& output : plan.outputs)
    if (output.block == block) names.insert(output.tensor);
  return names;
}

int count_readers(const std::vector<PlanOp>& ops, const std::string& tensor) {
  int count = 0;
  for (const PlanOp& op : ops)
    for (const auto& [name, operand] : op.inputs) count += operand == tensor;
  return count;
}

bool is_gated_pair(const PlanOp& linear, const PlanOp& gated) {
  if (linear.op != "linear" || gated.op != "gated_activation") return false;
  const bool plain = linear.inputs.size() == 1 && linear.weights.size() == 1 && linear.outputs.size() == 1 &&
                     linear.numbers.empty() && linear.words.empty() && linear.sequences.empty() &&
                     gated.inputs.size() == 1 && gated.weights.empty();
  if (!plain) return false;
  const auto out = linear.outputs.find("out");
  const auto x = gated.inputs.find("x");
  return out != linear.outputs.end() && x != gated.inputs.end() && out->second == x->second;
}

}  // namespace

std::set<std::string> wide_tensors(const Plan& plan) {
  std::set<std::string> names = {"logits"};
  for (auto op = plan.epilogue.rbegin(); op != plan.epilogue.rend(); ++op) {
    const auto out = op->outputs.find("out");
    const auto x = op->inputs.find("x");
    if ((op->op == "all_gather" || op->op == "all_reduce") && out != op->outputs.end() && x != op->inputs.end() &&
        names.contains(out->second))
      names.insert(x->second);
  }
  return names;
}

std::vector<PlanOp> fuse_gated_linears(const Plan& plan, const std::vector<PlanOp>& ops, const std::string& block) {
  const bool outside_layers = block == "prologue" || block == "epilogue";
  const std::set<std::string> outside = names_read_outside(plan, outside_layers ? block : "layers");
  std::vector<PlanOp> fused;
  for (size_t i = 0; i < ops.size(); ++i) {
    const bool pair = i + 1 < ops.size() && is_gated_pair(ops[i], ops[i + 1]);
    const std::string between = pair ? ops[i].outputs.at("out") : "";
    if (!pair || outside.contains(between) || count_readers(ops, between) != 1) {
      fused.push_back(ops[i]);
      continue;
    }
    PlanOp op = ops[i + 1];  // its output and its activation
    op.op = "linear_gated";
    op.inputs = ops[i].inputs;
    op.weights = ops[i].weights;
    fused.push_back(std::move(op));
    ++i;
  }
  return fused;
}

}  // namespace inflight
