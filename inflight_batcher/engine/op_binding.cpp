#include "inflight_batcher/engine/op_binding.h"

#include <cmath>

namespace inflight {

OpBinding::OpBinding(BuildState& state, const PlanOp& op, int unit_first_layer, std::string label, int index)
    : state_(state), op_(op), unit_first_layer_(unit_first_layer), label_(std::move(label)), index_(index) {}

void OpBinding::fail(ErrorCode code, const std::string& text) const { throw Error(code, concat(label_, ": ", text)); }

void OpBinding::use(int slot) {
  Slot& s = state_.program.slots[slot];
  if (s.first_use < 0) s.first_use = index_;
  s.last_use = std::max(s.last_use, index_);
  if (s.rows == Rows::kLogits) note_logits_rows();
}

void OpBinding::note_logits_rows() {
  if (state_.first_logits_op < 0) state_.first_logits_op = index_;
}

int OpBinding::input(const std::string& name) {
  const auto operand = op_.inputs.find(name);
  if (operand == op_.inputs.end()) fail(ErrorCode::kInvalidArgument, concat("input '", name, "' is missing"));
  used_.insert("input " + name);
  const std::string& tensor = operand->second;
  if (const auto gone = state_.overwritten.find(tensor); gone != state_.overwritten.end())
    fail(ErrorCode::kInvalidArgument,
         concat("input '", name, "' is tensor '", tensor, "', which '", gone->second, "' has overwritten in place"));
  const auto found = state_.scope.find(tensor);
  if (found == state_.scope.end())
    fail(ErrorCode::kInvalidArgument,
         concat("input '", name, "' is tensor '", tensor, "', which no op before it defines"));
  use(found->second);
  return found->second;
}

GraphInput OpBinding::graph_input(const std::string& name) {
  static const std::map<std::string, GraphInput> kInputs = {{"token_ids", GraphInput::kTokenIds},
                                                            {"positions", GraphInput::kPositions},
                                                            {"logits_rows", GraphInput::kLogitsRows}};
  const auto operand = op_.inputs.find(name);
  if (operand == op_.inputs.end()) fail(ErrorCode::kInvalidArgument, concat("input '", name, "' is missing"));
  used_.insert("input " + name);
  const auto found = kInputs.find(operand->second);
  if (found == kInputs.end())
    fail(ErrorCode::kInvalidArgument,
         concat("input '", name, "' is '", operand->second, "', wanted one of token_ids, positions, logits_rows"));
  if (found->second == GraphInput::kLogitsRows) note_logits_rows();
  return found->second;
}

TensorView OpBinding::weight(const std::string& name) {
  const auto operand = op_.weights.find(name);
  if (operand == op_.weights.end()) fail(ErrorCode::kInvalidArgument, concat("weight '", name, "' is missing"));
  return optional_weight(name);
}

TensorView OpBinding::optional_weight(const std::string& name) {
  const auto operand = op_.weights.find(name);
  if (operand == op_.weights.end()) return TensorView();
  used_.insert("weight " + name);
  try {
    const std::string& pattern = operand->second;
    return state_.weights.get(unit_first_layer_ < 0 ? pattern : substitute_layer(pattern, unit_first_layer_));
  } catch (const Error& e) {
    fail(e.code(), e.what());
  }
}

DType OpBinding::output_dtype(const std::string& name) const {
  const auto operand = op_.outputs.find(name);
  const bool wide = operand != op_.outputs.end() && state_.wide_tensors.contains(operand->second);
  return wide ? DType::kFloat32 : state_.activation;
}

int OpBinding::scratch(Rows rows, int64_t width) {
  state_.program.slots.push_back({rows, width, state_.activation});
  const int slot = static_cast<int>(state_.program.slots.size()) - 1;
  use(slot);
  return slot;
}

int OpBinding::output(const std::string& name, Rows rows, int64_t width, std::optional<DType> dtype) {
  const auto operand = op_.outputs.find(name);
  if (operand == op_.outputs.end()) fail(ErrorCode::kInvalidArgument, concat("output '", name, "' is missing"));
  used_.insert("output " + name);
  if (state_.scope.contains(operand->second))
    fail(ErrorCode::kInvalidArgument,
         concat("output '", name, "' defines tensor '", operand->second, "' a second time"));
  state_.program.slots.push_back({rows, width, dtype.value_or(output_dtype(name))});
  const int slot = static_cast<int>(state_.program.slots.size()) - 1;
  state_.scope[operand->second] = slot;
  use(slot);
  return slot;
}

int OpBinding::output_gathered(const std::string& name, int source) {
  const Slot from = slot(source);
  const int slot = output(name, Rows::kLogits, from.width, from.dtype);
  state_.program.slots[slot].source = source;
  return slot;
}

int OpBinding::output_in_place(const std::string& name, const std::string& input_name) {
  const int slot = input(input_name);
  const auto operand = op_.outputs.find(name);
  if (operand == op_.outputs.end()) fail(ErrorCode::kInvalidArgument, concat("output '", name, "' is missing"));
  used_.insert("output " + name);
  if (state_.scope.contains(operand->second))
    fail(ErrorCode::kInvalidArgument,
         concat("output '", name, "' defines tensor '", operand->second, "' a second time"));
  // Behind the first op on logits rows all runs once per slice of them, but an activation can be overwritten only once.
  if (state_.first_logits_op >= 0 && this->slot(slot).rows == Rows::kTokens)
    fail(ErrorCode::kUnsupported,
         concat("it overwrites tensor '", op_.inputs.at(input_name), "' in place behind an op on logits rows"));
  state_.program.slots[slot].source = -1;  // what is overwritten is a copy of its own
  state_.overwritten[op_.inputs.at(input_name)] = label_;
  state_.scope[operand->second] = slot;
  return slot;
}

double OpBinding::number(const std::string& name) {
  const auto found = op_.numbers.find(name);
  if (found == op_.numbers.end())
    fail(ErrorCode::kInvalidArgument, concat("attribute '", name, "' (a number) is missing"));
  used_.insert("attribute " + name);
  return found->second;
}

int OpBinding::integer(const std::string& name) {
  const double value = number(name);
  if (value != std::floor(value) || value < 0 || value > 2147483647.0)
    fail(ErrorCode::kInvalidArgument, concat("attribute '", name, "' is ", value, ", wanted a whole number >= 0"));
  return static_cast<int>(value);
}

std::string OpBinding::word(const std::string& name) {
  const auto found = op_.words.find(name);
  if (found == op_.words.end()) fail(ErrorCode::kInvalidArgument, concat("attribute '", name, "' (a text) is missing"));
  used_.insert("attribute " + name);
  return found->second;
}

TensorView OpBinding::constant(const std::string& name, int64_t first, int64_t count) {
  const auto found = op_.sequences.find(name);
  if (found == op_.sequences.end())
    fail(ErrorCode::kInvalidArgument, concat("attribute '", name, "' (a list) is missing"));
  used_.insert("attribute " + name);
  const auto size = static_cast<int64_t>(found->second.size());
  if (size == 0) return TensorView();
  if (count < 0) count = size - first;
  if (first + count > size)
    fail(ErrorCode::kInvalidArgument, concat("attribute '", name, "' has ", size, " numbers, wanted ", first + count));
  return state_.weights.constant({found->second.begin() + first, found->second.begin() + first + count});
}

const PlanKvLayer& OpBinding::kv_description() {
  if (unit_first_layer_ < 0) fail(ErrorCode::kInvalidArgument, "only an op of the layers block has a KV cache");
  const int layer = integer("layer");
  if (layer >= state_.plan.unit_layers)
    fail(ErrorCode::kInvalidArgument, concat("it belongs to layer ", layer, " of a unit of ", state_.plan.unit_layers));
  return state_.plan.kv_layers[unit_first_layer_ + layer];
}

int OpBinding::kv_layer() {
  kv_description();
  return unit_first_layer_ + integer("layer") - state_.first_layer;
}

void OpBinding::check_all_used() const {
  const auto refuse_unused = [&](const auto& operands, const std::string& kind) {
    for (const auto& [name, value] : operands)
      if (!used_.contains(kind + " " + name))
        fail(ErrorCode::kInvalidArgument, concat("unknown ", kind, " '", name, "'"));
  };
  refuse_unused(op_.inputs, "input");
  refuse_unused(op_.weights, "weight");
  refuse_unused(op_.outputs, "output");
  refuse_unused(op_.numbers, "attribute");
  refuse_unused(op_.words, "attribute");
  refuse_unused(op_.sequences, "attribute");
}

}  // namespace inflight
