#pragma once

#include <compare>
#include <cstddef>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "inflight/batch.h"
#include "inflight/op_table.h"

namespace inflight {

/// What the first dimension of an activation counts.
enum class Rows { kTokens, kLogits };

/// An activation of the program: [rows of a step, width]. `offset` is its place in the arena once memory is planned.
struct Slot {
  Rows rows = Rows::kTokens;
  int64_t width = 0;
  DType dtype = DType::kFloat32;
  size_t offset = 0;
  int first_use = -1;  // op indices between which the slot's memory is its own
  int last_use = -1;
  int source = -1;  // of gathered rows: where they come from, and stay where a batch's logits rows are all its tokens
};

/// What an operation sees while it runs: the step, and where activations lie.
struct RunContext {
  const OpTable* table = nullptr;
  DeviceContext* device = nullptr;
  const BatchView* batch = nullptr;
  std::byte* arena = nullptr;
  const std::vector<Slot>* slots = nullptr;
  std::vector<KvCacheView>* kv_cache = nullptr;  // by layer of this stage
  int64_t max_tokens = 0;                        // rows that the arena has room for; 0: only the step's are known of
  int64_t max_logits_rows = 0;

  TensorView view(int slot) const {
    const Slot& s = (*slots)[slot];
    const int64_t rows = s.rows == Rows::kTokens ? batch->num_tokens() : batch->logits_rows.shape[0];
    const size_t offset = is_its_source(s) ? (*slots)[s.source].offset : s.offset;
    return TensorView(arena + offset, s.dtype, {rows, s.width});
  }
  /// Whether the slot's rows lie where they were gathered from: nothing need be copied.
  bool is_its_source(const Slot& slot) const { return slot.source >= 0 && batch->logits_rows_are_all_tokens; }
  int64_t rows_in_memory(int slot) const { return (*slots)[slot].rows == Rows::kTokens ? max_tokens : max_logits_rows; }
};

/// An operation with its operands resolved.
struct BoundOp {
  std::string label;  // "layer 3 linear -> qkv", for errors and traces
  std::function<void(const RunContext&)> run;
};

/// Runs it; whatever it throws becomes an Error with its label in front.
void run_op(const BoundOp& op, const RunContext& context);

/// Tensors of a pipeline stage that its neighbours or the executor want.
struct Capture {
  std::string name;
  int layer = -1;  // -1 outside the layers block
  int slot = 0;

  std::string full_name() const { return layer < 0 ? name : name + ".layer" + std::to_string(layer); }
};

/// A matrix product of the program: what a device may want to time its algorithms for. Weight [N, K].
struct LinearShape {
  int64_t n = 0;
  int64_t k = 0;
  Rows rows = Rows::kTokens;
  DType out = DType::kFloat32;
  bool bias = false;
  bool gated = false;  // linear_gated
  bool add = false;    // linear_add

  auto operator<=>(const LinearShape&) const = default;
};

/// One rank's part of a plan, ready to run: `body` for the whole step, then `epilogue` once per slice of logits rows
/// (on the last stage only).
struct Program {
  std::vector<BoundOp> body;
  std::vector<BoundOp> epilogue;
  std::vector<Slot> slots;
  std::vector<int> carry_in;   // received from the stage before, in the plan's carry order
  std::vector<int> carry_out;  // sent to the stage behind
  int logits = -1;             // slot of the logits, on the last stage
  std::vector<Capture> captures;
  std::set<LinearShape> linears;
  size_t arena_bytes = 0;
};

/// Gives every slot a place such that slots alive at the same time never overlap (greedy by size: Pisarchyk & Lee 2020,
/// "Efficient Memory Management for Deep Neural Net Inference"). Returns the arena's size in bytes.
size_t plan_memory(std::vector<Slot>& slots, int64_t max_tokens, int64_t max_logits_rows);

}  // namespace inflight
