#include "inflight_batcher/engine/program_builder.h"

#include <algorithm>

#include "inflight_batcher/engine/plan_passes.h"

namespace inflight {

namespace {

class Builder {
 public:
  Builder(const Plan& plan, const OpTable& table, WeightSource& weights, Communicator& group, const Topology& topology,
          int stage, DType activation)
      : plan_(plan),
        state_{plan, table, weights, group, activation, 0, -1, {}, {}, {}, wide_tensors(plan)},
        first_stage_(stage == 0),
        last_stage_(stage == topology.pipeline_parallel - 1) {
    check(plan.repeat >= topology.pipeline_parallel, ErrorCode::kInvalidArgument, "the network has ", plan.repeat,
          " repeating units, which cannot be divided among ", topology.pipeline_parallel, " pipeline stages");
    std::tie(first_unit_, last_unit_) = topology.layers_of(stage, plan.repeat);
    state_.first_layer = first_unit_ * plan.unit_layers;
  }

  Program build(int64_t max_tokens, int64_t max_logits_rows) {
    if (first_stage_) {
      add_ops(plan_.prologue, "prologue", OpBinding::kOutsideLayers);
      add_captures("prologue", -1);
      hand_on([](const auto& pair) { return pair.first; }, "the layers block is entered with");
    } else {
      receive_carry();
    }
    for (int unit = first_unit_; unit < last_unit_; ++unit) add_unit(unit);
    last_stage_ ? add_epilogue() : send_carry();
    keep_captures_alive();
    state_.program.arena_bytes = plan_memory(state_.program.slots, max_tokens, max_logits_rows);
    return std::move(state_.program);
  }

 private:
  // What works on logits rows runs once per slice of them; what stands in front, once.
  void add_ops(const std::vector<PlanOp>& ops, const std::string& block, int first_layer) {
    std::vector<PlanOp> fused = state_.table.linear_gated ? fuse_gated_linears(plan_, ops, block) : ops;
    if (state_.table.linear_add && state_.tp_size() == 1) fused = fuse_residual_adds(plan_, fused, block);
    if (state_.table.rope_attention) fused = fuse_rope_attention(plan_, fused, block);
    for (const PlanOp& op : fused) {
      const std::string target = op.outputs.empty() ? "" : " -> " + op.outputs.begin()->second;
      std::string label = block + ", op '" + op.op + "'" + target;
      OpBinding binding(state_, op, first_layer, label, next_index_++);
      std::function<void(const RunContext&)> run;
      try {
        run = find_op(op.op)(binding);
      } catch (const Error& e) {
        const std::string text = e.what();
        if (text.starts_with(label)) throw;
        throw Error(e.code(), concat(label, ": ", text));
      }
      binding.check_all_used();
      const bool per_slice = state_.first_logits_op >= 0;
      if (per_slice && block != "epilogue")
        binding.fail(ErrorCode::kInvalidArgument, "only the epilogue may work on logits rows");
      (per_slice ? state_.program.epilogue : state_.program.body).push_back({std::move(label), std::move(run)});
    }
  }

  // A unit's names are its own: only the carry crosses from one unit to the next, under the entry names.
  void add_unit(int unit) {
    const int first_layer = unit * plan_.unit_layers;
    add_ops(plan_.unit, concat("layer ", first_layer), first_layer);
    add_captures("layers", first_layer);
    hand_on([](const auto& pair) { return pair.second; }, "the layers block carries");
  }

  template <typename NameOf>
  void hand_on(const NameOf& name_of, const std::string& why) {
    std::map<std::string, int> handed_on;
    for (const auto& pair : plan_.carry) handed_on[pair.first] = slot_of(name_of(pair), why);
    state_.scope = std::move(handed_on);
    state_.overwritten.clear();
  }

  void add_epilogue() {
    add_ops(plan_.epilogue, "epilogue", OpBinding::kOutsideLayers);
    add_captures("epilogue", -1);
    state_.program.logits = slot_of("logits", "the epilogue must define");
    const Slot& logits = state_.program.slots[state_.program.logits];
    check(logits.rows == Rows::kLogits && logits.width == plan_.vocabulary_size, ErrorCode::kInvalidArgument,
          "logits have width ", logits.width, ", the vocabulary has ", plan_.vocabulary_size, " entries");
    check(logits.dtype == DType::kFloat32, ErrorCode::kUnsupported, "logits are ", name_of(logits.dtype),
          ", wanted float32: the output of a linear, whole or gathered");
    // The epilogue runs once per slice of rows: what it reads from the body has to survive all slices.
    for (Slot& slot : state_.program.slots)
      if (slot.rows == Rows::kTokens && slot.last_use >= state_.first_logits_op) slot.last_use = next_index_;
    state_.program.slots[state_.program.logits].last_use = next_index_;
  }

  void receive_carry() {
    for (const auto& [entry, exit] : plan_.carry) {
      // Carried tensors are whole on every tensor-parallel rank and as wide as the network.
      state_.program.slots.push_back({Rows::kTokens, plan_.hidden_size, state_.activation, 0, 0, 0});
      const int slot = static_cast<int>(state_.program.slots.size()) - 1;
      state_.scope[entry] = slot;
      state_.program.carry_in.push_back(slot);
    }
    ++next_index_;
  }

  void send_carry() {
    for (const auto& [entry, exit] : plan_.carry) {
      const int slot = slot_of(entry, "the layers block carries");
      Slot& carried = state_.program.slots[slot];
      check(carried.rows == Rows::kTokens && carried.width == plan_.hidden_size, ErrorCode::kInvalidArgument,
            "the layers block carries '", entry, "' of width ", carried.width, ", wanted the hidden size ",
            plan_.hidden_size);
      carried.last_use = next_index_;
      state_.program.carry_out.push_back(slot);
    }
  }

  // A marked tensor is copied where its block ends: what comes behind may reuse its memory.
  // It is done before the slices of the epilogue, so the copy is its own from there on.
  void add_captures(const std::string& block, int layer) {
    for (const PlanOutput& output : plan_.outputs) {
      if (output.block != block) continue;
      const int marked = slot_of(output.tensor, "a marked output names");
      Slot copy = state_.program.slots[marked];
      check(copy.rows == Rows::kTokens, ErrorCode::kUnsupported, "marked output '", output.name,
            "' has a row per logits row; only tensors with a row per token can be marked");
      const bool per_slice = state_.first_logits_op >= 0;
      check(!per_slice || copy.first_use < state_.first_logits_op, ErrorCode::kUnsupported, "marked output '",
            output.name, "' is computed behind an op on logits rows");
      copy.first_use = per_slice ? state_.first_logits_op : next_index_;
      state_.program.slots[marked].last_use = copy.last_use = next_index_++;
      state_.program.slots.push_back(copy);
      const int slot = static_cast<int>(state_.program.slots.size()) - 1;
      state_.program.body.push_back({"marked output '" + output.name + "'", [=](const RunContext& run) {
                                       const TensorView source = run.view(marked);
                                       run.device->copy(run.view(slot).data, source.data, source.bytes());
                                     }});
      state_.program.captures.push_back({output.name, layer, slot});
    }
  }

  void keep_captures_alive() {
    for (const Capture& capture : state_.program.captures) state_.program.slots[capture.slot].last_use = next_index_;
  }

  int slot_of(const std::string& tensor, const std::string& why) const {
    const auto found = state_.scope.find(tensor);
    check(found != state_.scope.end(), ErrorCode::kInvalidArgument, why, " tensor '", tensor, "', which no op defines");
    check(!state_.overwritten.contains(tensor), ErrorCode::kInvalidArgument, why, " tensor '", tensor,
          "', which a later op overwrites in place");
    return found->second;
  }

  const Plan& plan_;
  BuildState state_;
  bool first_stage_;
  bool last_stage_;
  int first_unit_ = 0;
  int last_unit_ = 0;
  int next_index_ = 0;
};

}  // namespace

Program build_program(const Plan& plan, const OpTable& table, WeightSource& weights, Communicator& tensor_group,
                      const Topology& topology, int stage, int64_t max_tokens, int64_t max_logits_rows,
                      DType activation) {
  return Builder(plan, table, weights, tensor_group, topology, stage, activation).build(max_tokens, max_logits_rows);
}

void run_op(const BoundOp& op, const RunContext& context) {
  try {
    op.run(context);
  } catch (const Error& e) {
    throw Error(e.code(), concat(op.label, ": ", e.what()));
  } catch (const std::exception& e) {
    throw Error(ErrorCode::kInternal, concat(op.label, ": ", e.what()));
  } catch (...) {  // an op of one's own may throw anything
    throw Error(ErrorCode::kInternal, concat(op.label, ": it threw something that is no std::exception"));
  }
}

}  // namespace inflight
