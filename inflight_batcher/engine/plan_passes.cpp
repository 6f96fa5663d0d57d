#include "inflight_batcher/engine/plan_passes.h"

#include <algorithm>
#include <optional>

namespace inflight {

namespace {

// The names under which a block's tensors are read outside it.
std::set<std::string> names_read_outside(const Plan& plan, const std::string& label) {
  const std::string block = label == "prologue" || label == "epilogue" ? label : "layers";
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

const std::string* find_tensor(const std::map<std::string, std::string>& operands, const std::string& name) {
  const auto found = operands.find(name);
  return found == operands.end() ? nullptr : &found->second;
}

// The attributes of both, or nothing where they give one of them two values.
template <typename Value>
std::optional<std::map<std::string, Value>> merged(const std::map<std::string, Value>& a,
                                                   const std::map<std::string, Value>& b) {
  std::map<std::string, Value> both = a;
  for (const auto& [name, value] : b)
    if (both.emplace(name, value).first->second != value) return std::nullopt;
  return both;
}

bool has_only(const std::map<std::string, std::string>& operands, const std::string& name) {
  return operands.size() == 1 && operands.contains(name);
}

// The op that does both, or nothing where they are no such pair.
std::optional<PlanOp> rope_attention_of(const PlanOp& rope, const PlanOp& attention) {
  if (rope.op != "rope_kv_write" || attention.op != "attention") return {};
  const bool plain = has_only(rope.inputs, "qkv") && has_only(rope.outputs, "q") && has_only(attention.inputs, "q") &&
                     has_only(attention.outputs, "out") && rope.weights.empty() && attention.weights.empty();
  if (!plain || rope.outputs != attention.inputs) return {};
  const auto numbers = merged(rope.numbers, attention.numbers);
  const auto words = merged(rope.words, attention.words);
  const auto sequences = merged(rope.sequences, attention.sequences);
  if (!numbers || !words || !sequences) return {};
  return PlanOp{"rope_attention", rope.inputs, {}, attention.outputs, *numbers, *words, *sequences};
}

/// A linear, maybe an all_reduce, and the norm that adds their result to a residual.
struct ResidualAdd {
  const PlanOp* linear = nullptr;
  const PlanOp* norm = nullptr;
  std::vector<std::string> between;  // what each op before the norm defines, and nobody else may read
};

ResidualAdd find_residual_add(const std::vector<PlanOp>& ops, size_t first) {
  if (ops[first].op != "linear" || ops[first].inputs.size() != 1 || !ops[first].outputs.contains("out")) return {};
  ResidualAdd found{&ops[first], nullptr, {ops[first].outputs.at("out")}};
  for (size_t i = first + 1; i < ops.size(); ++i) {
    const PlanOp& op = ops[i];
    const std::string *x = find_tensor(op.inputs, "x"), *out = find_tensor(op.outputs, "out");
    if (!x || !out || *x != found.between.back()) return {};
    if (op.op == "all_reduce" && found.between.size() == 1) {
      found.between.push_back(*out);
      continue;
    }
    const std::string* residual = find_tensor(op.inputs, "residual");
    const bool adds = (op.op == "rms_norm" || op.op == "layer_norm") && residual && op.outputs.contains("residual") &&
                      *residual != *x && *residual != ops[first].inputs.begin()->second;
    found.norm = adds ? &op : nullptr;
    return found;
  }
  return {};
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
  const std::set<std::string> outside = names_read_outside(plan, block);
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

std::vector<PlanOp> fuse_residual_adds(const Plan& plan, const std::vector<PlanOp>& ops, const std::string& block) {
  const std::set<std::string> outside = names_read_outside(plan, block);
  std::vector<PlanOp> fused;
  for (size_t i = 0; i < ops.size(); ++i) {
    const ResidualAdd found = find_residual_add(ops, i);
    const bool alone = std::all_of(found.between.begin(), found.between.end(), [&](const std::string& tensor) {
      return !outside.contains(tensor) && count_readers(ops, tensor) == 1;
    });
    if (!found.norm || !alone) {
      fused.push_back(ops[i]);
      continue;
    }
    const std::string sum = found.norm->outputs.at("residual");
    PlanOp add = *found.linear, norm = *found.norm;
    add.op = "linear_add";
    add.inputs["residual"] = norm.inputs.at("residual");
    add.outputs = {{"residual", sum}};
    norm.inputs = {{"x", sum}};
    norm.outputs.erase("residual");
    fused.push_back(std::move(add));
    fused.push_back(std::move(norm));
    i += found.between.size();
  }
  return fused;
}

std::vector<PlanOp> fuse_rope_attention(const Plan& plan, const std::vector<PlanOp>& ops, const std::string& block) {
  const std::set<std::string> outside = names_read_outside(plan, block);
  std::vector<PlanOp> fused;
  for (size_t i = 0; i < ops.size(); ++i) {
    std::optional<PlanOp> both = i + 1 < ops.size() ? rope_attention_of(ops[i], ops[i + 1]) : std::nullopt;
    const std::string q = both ? ops[i].outputs.at("q") : "";
    if (!both || outside.contains(q) || count_readers(ops, q) != 1) {
      fused.push_back(ops[i]);
      continue;
    }
    fused.push_back(std::move(*both));
    ++i;
  }
  return fused;
}

}  // namespace inflight
