#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "inflight_batcher/engine/plan.h"
#include "inflight_batcher/engine/program.h"
#include "inflight_batcher/engine/weight_source.h"
#include "inflight_batcher/parallel/communicator.h"

namespace inflight {

/// Activations that are the step's own and not computed by any op.
enum class GraphInput { kTokenIds, kPositions, kLogitsRows };

/// What all bindings of one rank share while its program is built.
struct BuildState {
  const Plan& plan;
  const OpTable& table;
  WeightSource& weights;
  Communicator& tensor_group;
  DType activation = DType::kFloat32;  // of what lies between the ops
  int first_layer = 0;                 // of the stage
  int first_logits_op = -1;            // index of the first op that works on logits rows
  int tp_size() const { return tensor_group.size(); }

  Program program;
  std::map<std::string, int> scope;                // tensor name -> slot
  std::map<std::string, std::string> overwritten;  // tensor name -> op that reused its memory
  std::set<std::string> wide_tensors;              // float32 whatever the activations are: the logits
};

/// One plan op while it is bound: hands out its operands and attributes, checks them, and refuses what nobody asked
/// for.
class OpBinding {
 public:
  static constexpr int kOutsideLayers = -1;  // `unit_first_layer` of an op that belongs to no layer

  OpBinding(BuildState& state, const PlanOp& op, int unit_first_layer, std::string label, int index);

  const OpTable& table() const { return state_.table; }
  Communicator& tensor_group() const { return state_.tensor_group; }
  int tp_size() const { return state_.tp_size(); }
  int tp_rank() const { return state_.tensor_group.rank(); }

  bool has_input(const std::string& name) const { return op_.inputs.contains(name); }
  int input(const std::string& name);
  GraphInput graph_input(const std::string& name);
  const Slot& slot(int index) const { return state_.program.slots[index]; }

  TensorView weight(const std::string& name);
  TensorView optional_weight(const std::string& name);

  /// Without a dtype: that of the activations, but float32 for the logits.
  int output(const std::string& name, Rows rows, int64_t width, std::optional<DType> dtype = std::nullopt);
  /// Rows of `source` [tokens, width] by logits_rows. See Slot::source: the op need not run where view() gives both the
  /// same memory.
  int output_gathered(const std::string& name, int source);
  /// Memory that only this op uses, while it runs.
  int scratch(Rows rows, int64_t width);
  /// The output lives in the memory of input `input`, which is gone afterwards.
  int output_in_place(const std::string& name, const std::string& input);

  double number(const std::string& name);
  int integer(const std::string& name);
  bool flag(const std::string& name) { return number(name) != 0.0; }
  std::string word(const std::string& name);
  /// A list of numbers as float32 that lives as long as the weights; absent view for an empty list.
  TensorView constant(const std::string& name, int64_t first = 0, int64_t count = -1);
  /// Index of the op's KV cache among those of the stage; the op's attribute `layer` counts within its unit.
  int kv_layer();
  void note_linear(const LinearShape& shape) { state_.program.linears.insert(shape); }
  const PlanKvLayer& kv_description();

  /// Everything the plan gave must have been asked for.
  void check_all_used() const;
  [[noreturn]] void fail(ErrorCode code, const std::string& text) const;

 private:
  DType output_dtype(const std::string& name) const;
  void use(int slot);
  void note_logits_rows();

  BuildState& state_;
  const PlanOp& op_;
  int unit_first_layer_;
  std::string label_;
  int index_;
  std::set<std::string> used_;
};

/// Turns a plan op into something that runs. Registered by name; a library may add its own before an engine is loaded.
using OpBuilder = std::function<std::function<void(const RunContext&)>(OpBinding&)>;
void register_op(const std::string& name, OpBuilder builder);

/// Throws Error(kUnsupported) with the list of known ops.
const OpBuilder& find_op(const std::string& name);

}  // namespace inflight
