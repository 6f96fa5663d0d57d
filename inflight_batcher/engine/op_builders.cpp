#include <map>

#include "inflight_batcher/engine/op_binding.h"
#include "inflight_batcher/engine/weights.h"

namespace inflight {

namespace {

using Run = std::function<void(const RunContext&)>;

void require(OpBinding& op, bool condition, const std::string& text) {
  if (!condition) op.fail(ErrorCode::kInvalidArgument, text);
}

template <typename Function>
Function require_kernel(OpBinding& op, Function function) {
  if (!function) op.fail(ErrorCode::kUnsupported, concat("device '", op.table().device, "' has no kernel for it"));
  return function;
}

TensorView graph_view(const RunContext& run, GraphInput input) {
  switch (input) {
    case GraphInput::kTokenIds: return run.batch->token_ids;
    case GraphInput::kPositions: return run.batch->positions;
    case GraphInput::kLogitsRows: return run.batch->logits_rows;
  }
  return {};
}

Activation activation_of(OpBinding& op) {
  static const std::map<std::string, Activation> kNames = {{"silu", Activation::kSilu},
                                                           {"gelu", Activation::kGelu},
                                                           {"gelu_tanh", Activation::kGeluTanh},
                                                           {"relu", Activation::kRelu}};
  const std::string name = op.word("activation");
  const auto found = kNames.find(name);
  require(op, found != kNames.end(), concat("activation '", name, "' is none of silu, gelu, gelu_tanh, relu"));
  return found->second;
}

Run bind_embedding(OpBinding& op) {
  const auto kernel = require_kernel(op, op.table().embedding);
  const GraphInput ids = op.graph_input("ids");
  const TensorView table = op.weight("table");  // [V, H]
  require(op, ids != GraphInput::kLogitsRows && table.rank == 2, "wanted token_ids or positions and a table of rank 2");
  const int out = op.output("out", Rows::kTokens, table.shape[1]);
  if (ids != GraphInput::kTokenIds)
    return [=](const RunContext& run) { kernel({graph_view(run, ids), table, run.view(out), {}, {}}, *run.device); };
  return [=](const RunContext& run) {
    const BatchView& batch = *run.batch;
    kernel({batch.token_ids, table, run.view(out), batch.virtual_tokens, batch.virtual_rows}, *run.device);
  };
}

Run bind_gather_rows(OpBinding& op) {
  const auto kernel = require_kernel(op, op.table().gather_rows);
  const int x = op.input("x");
  require(op, op.graph_input("rows") == GraphInput::kLogitsRows, "rows must be logits_rows");
  require(op, op.slot(x).rows == Rows::kTokens, "x has been gathered already");
  const int out = op.output_gathered("out", x);
  return [=](const RunContext& run) {
    const TensorView from = run.view(x), to = run.view(out);
    if (to.data != from.data) kernel({from, run.batch->logits_rows, to}, *run.device);
  };
}

Run bind_linear(OpBinding& op) {
  const auto kernel = require_kernel(op, op.table().linear);
  const int x = op.input("x");
  const TensorView weight = op.weight("weight");  // [N, K]
  const TensorView bias = op.optional_weight("bias");
  require(op, weight.rank == 2 && weight.shape[1] == op.slot(x).width,
          concat("weight is ", describe(weight), ", the input has width ", op.slot(x).width));
  require(op, !bias || bias.elements() == weight.shape[0],
          concat("bias is ", describe(bias), ", the weight ", describe(weight)));
  const int out = op.output("out", op.slot(x).rows, weight.shape[0]);
  op.note_linear({weight.shape[0], weight.shape[1], op.slot(out).rows, op.slot(out).dtype, bool(bias), false});
  return [=](const RunContext& run) {
    kernel({run.view(x), weight, bias, run.view(out), run.rows_in_memory(x)}, *run.device);
  };
}

// linear and the sum with the residual behind it, on a device that has one kernel for both (see plan_passes.h).
Run bind_linear_add(OpBinding& op) {
  const auto kernel = require_kernel(op, op.table().linear_add);
  const int x = op.input("x");
  const TensorView weight = op.weight("weight");  // [N, K]
  const TensorView bias = op.optional_weight("bias");
  const int residual = op.output_in_place("residual", "residual");
  const Slot& sum = op.slot(residual);
  require(
      op, weight.rank == 2 && weight.shape[1] == op.slot(x).width && weight.shape[0] == sum.width,
      concat("weight is ", describe(weight), ", the input has width ", op.slot(x).width, ", the residual ", sum.width));
  require(op, (!bias || bias.elements() == sum.width) && residual != x && sum.rows == op.slot(x).rows,
          concat("bias is ", describe(bias), ", the residual has width ", sum.width));
  op.note_linear({weight.shape[0], weight.shape[1], sum.rows, sum.dtype, bool(bias), false, true});
  return [=](const RunContext& run) {
    kernel({run.view(x), weight, bias, run.view(residual), run.rows_in_memory(x)}, *run.device);
  };
}

// linear and the gated_activation behind it, on a device that has one kernel for both (see plan_passes.h).
Run bind_linear_gated(OpBinding& op) {
  const auto kernel = require_kernel(op, op.table().linear_gated);
  const int x = op.input("x");
  const TensorView weight = op.weight("weight");  // [2 N, K]
  const Activation activation = activation_of(op);
  require(op, weight.rank == 2 && weight.shape[1] == op.slot(x).width && weight.shape[0] % 2 == 0,
          concat("weight is ", describe(weight), ", the input has width ", op.slot(x).width));
  const Rows rows = op.slot(x).rows;
  const int scratch = op.scratch(rows, weight.shape[0]);
  const int out = op.output("out", rows, weight.shape[0] / 2);
  op.note_linear({weight.shape[0], weight.shape[1], rows, op.slot(out).dtype, false, true});
  return [=](const RunContext& run) {
    kernel({run.view(x), weight, run.view(scratch), run.view(out), activation, run.rows_in_memory(x)}, *run.device);
  };
}

struct NormOperands {
  int x = 0;
  int residual = -1;
  TensorView weight;
  TensorView bias;
  float epsilon = 0;
  int out = 0;
};

NormOperands bind_norm_operands(OpBinding& op, bool with_bias) {
  NormOperands norm;
  norm.x = op.input("x");
  const Slot x = op.slot(norm.x);
  norm.weight = op.weight("weight");
  if (with_bias) norm.bias = op.optional_weight("bias");
  norm.epsilon = static_cast<float>(op.number("epsilon"));
  const auto fits = [&](const TensorView& view) { return view && view.rank == 1 && view.elements() == x.width; };
  require(op, fits(norm.weight), concat("weight is ", describe(norm.weight), ", the input has width ", x.width));
  require(op, !norm.bias || fits(norm.bias),
          concat("bias is ", describe(norm.bias), ", the input has width ", x.width));
  if (op.has_input("residual")) {
    norm.residual = op.output_in_place("residual", "residual");
    const Slot& residual = op.slot(norm.residual);
    require(
        op, norm.residual != norm.x && residual.width == x.width && residual.rows == x.rows,
        concat("the residual has width ", residual.width, ", wanted another tensor of the input's width ", x.width));
  }
  norm.out = op.output("out", x.rows, x.width, x.dtype);
  return norm;
}

TensorView optional_view(const RunContext& run, int slot) { return slot < 0 ? TensorView() : run.view(slot); }

Run bind_rms_norm(OpBinding& op) {
  const auto kernel = require_kernel(op, op.table().rms_norm);
  const NormOperands n = bind_norm_operands(op, false);
  return [=](const RunContext& run) {
    kernel({run.view(n.x), optional_view(run, n.residual), n.weight, run.view(n.out), n.epsilon}, *run.device);
  };
}

Run bind_layer_norm(OpBinding& op) {
  const auto kernel = require_kernel(op, op.table().layer_norm);
  const NormOperands n = bind_norm_operands(op, true);
  return [=](const RunContext& run) {
    kernel({run.view(n.x), optional_view(run, n.residual), n.weight, n.bias, run.view(n.out), n.epsilon}, *run.device);
  };
}

Run bind_activation(OpBinding& op) {
  const auto kernel = require_kernel(op, op.table().activation);
  const int x = op.input("x");
  const Activation activation = activation_of(op);
  const int out = op.output("out", op.slot(x).rows, op.slot(x).width, op.slot(x).dtype);
  return [=](const RunContext& run) { kernel({run.view(x), run.view(out), activation}, *run.device); };
}

Run bind_gated_activation(OpBinding& op) {
  const auto kernel = require_kernel(op, op.table().gated_activation);
  const int x = op.input("x");
  const Activation activation = activation_of(op);
  require(op, op.slot(x).width % 2 == 0, concat("input width ", op.slot(x).width, " is not gate and up side by side"));
  const int out = op.output("out", op.slot(x).rows, op.slot(x).width / 2, op.slot(x).dtype);
  return [=](const RunContext& run) { kernel({run.view(x), run.view(out), activation}, *run.device); };
}

Run bind_add(OpBinding& op) {
  const auto kernel = require_kernel(op, op.table().add);
  const int a = op.input("a");
  const int b = op.input("b");
  require(op, op.slot(a).width == op.slot(b).width && op.slot(a).rows == op.slot(b).rows,
          concat("the operands have widths ", op.slot(a).width, " and ", op.slot(b).width));
  const int out = op.output("out", op.slot(a).rows, op.slot(a).width, op.slot(a).dtype);
  return [=](const RunContext& run) { kernel({run.view(a), run.view(b), run.view(out)}, *run.device); };
}

// Heads of this rank. KV heads that are fewer than the ranks are shared by neighbours.
struct LocalHeads {
  int64_t query = 0;
  int64_t kv = 0;
  int64_t head_size = 0;

  int64_t q_width() const { return query * head_size; }
  int64_t qkv_width() const { return (query + 2 * kv) * head_size; }
};

LocalHeads local_heads(OpBinding& op) {
  const int heads = op.integer("num_heads");
  const int kv_heads = op.integer("num_kv_heads");
  const int tp = op.tp_size();
  require(op, heads > 0 && kv_heads > 0 && heads % kv_heads == 0,
          concat(heads, " query heads do not divide into ", kv_heads, " KV heads"));
  require(
      op, heads % tp == 0 && (kv_heads % tp == 0 || tp % kv_heads == 0),
      concat(heads, " query heads and ", kv_heads, " KV heads cannot be divided among ", tp, " tensor-parallel ranks"));
  const PlanKvLayer& layer = op.kv_description();
  require(op, layer.num_kv_heads == kv_heads && layer.head_size == op.integer("head_size"),
          concat("kv_cache has ", layer.num_kv_heads, " heads of ", layer.head_size, ", the op has ", kv_heads, " of ",
                 op.integer("head_size")));
  const auto [first, last] = units_of_rank(kv_heads, op.tp_rank(), tp);
  return {heads / tp, last - first, layer.head_size};
}

int heads_input(OpBinding& op, const std::string& name, int64_t width) {
  const int slot = op.input(name);
  require(op, op.slot(slot).rows == Rows::kTokens && op.slot(slot).width == width,
          concat(name, " has width ", op.slot(slot).width, ", wanted ", width));
  return slot;
}

// The attributes of rope_kv_write; the tensors are a step's own.
RopeKvWriteArgs bind_rotation(OpBinding& op, const LocalHeads& heads) {
  RopeKvWriteArgs args;
  args.inverse_frequencies = op.constant("inverse_frequencies");
  args.rope_scale = static_cast<float>(op.number("rope_scale"));
  args.interleaved = op.flag("interleaved");
  require(
      op, !args.inverse_frequencies || args.inverse_frequencies.shape[0] * 2 <= heads.head_size,
      concat(args.inverse_frequencies.elements(), " frequencies are more than half of head size ", heads.head_size));
  return args;
}

// The attributes of attention; the tensors are a step's own.
AttentionArgs bind_scores(OpBinding& op, const LocalHeads& heads) {
  AttentionArgs args;
  args.scale = static_cast<float>(op.number("scale"));
  args.window = op.integer("window");
  require(op, args.window == op.kv_description().window,
          concat("window is ", args.window, ", kv_cache has ", op.kv_description().window));
  args.window = op.kv_description().window_in_force;
  args.sinks = op.kv_description().sinks;
  args.soft_cap = static_cast<float>(op.number("soft_cap"));
  args.alibi_slopes = op.constant("alibi_slopes", heads.query * op.tp_rank(), heads.query);
  return args;
}

Run bind_rope_kv_write(OpBinding& op) {
  const auto kernel = require_kernel(op, op.table().rope_kv_write);
  const LocalHeads heads = local_heads(op);
  const int qkv = heads_input(op, "qkv", heads.qkv_width());
  const int layer = op.kv_layer();
  RopeKvWriteArgs args = bind_rotation(op, heads);
  const int q = op.output("q", Rows::kTokens, heads.q_width());
  return [=](const RunContext& run) mutable {
    args.qkv = run.view(qkv);
    args.cache = (*run.kv_cache)[layer];
    args.q = run.view(q);
    kernel(args, *run.batch, *run.device);
  };
}

Run bind_attention(OpBinding& op) {
  const auto kernel = require_kernel(op, op.table().attention);
  const LocalHeads heads = local_heads(op);
  const int q = heads_input(op, "q", heads.q_width());
  const int layer = op.kv_layer();
  AttentionArgs args = bind_scores(op, heads);
  const int out = op.output("out", Rows::kTokens, heads.q_width());
  return [=](const RunContext& run) mutable {
    args.q = run.view(q);
    args.cache = (*run.kv_cache)[layer];
    args.out = run.view(out);
    kernel(args, *run.batch, *run.device);
  };
}

// rope_kv_write and the attention behind it, on a device that has one kernel for both (see plan_passes.h).
Run bind_rope_attention(OpBinding& op) {
  const auto kernel = require_kernel(op, op.table().rope_attention);
  const LocalHeads heads = local_heads(op);
  const int qkv = heads_input(op, "qkv", heads.qkv_width());
  const int layer = op.kv_layer();
  RopeKvWriteArgs rope = bind_rotation(op, heads);
  AttentionArgs attention = bind_scores(op, heads);
  const int q = op.scratch(Rows::kTokens, heads.q_width());
  const int out = op.output("out", Rows::kTokens, heads.q_width());
  return [=](const RunContext& run) mutable {
    rope.qkv = run.view(qkv);
    rope.cache = attention.cache = (*run.kv_cache)[layer];
    rope.q = attention.q = run.view(q);
    attention.out = run.view(out);
    kernel(rope, attention, *run.batch, *run.device);
  };
}

Run bind_all_reduce(OpBinding& op) {
  const int out = op.output_in_place("out", "x");
  if (op.tp_size() == 1) return [](const RunContext&) {};
  Communicator* group = &op.tensor_group();
  return [=](const RunContext& run) { group->all_reduce(run.view(out)); };
}

Run bind_all_gather(OpBinding& op) {
  if (op.tp_size() == 1) {
    op.output_in_place("out", "x");
    return [](const RunContext&) {};
  }
  // Shards may differ in width by a unit, so the whole width has to be agreed on: a collective at build time.
  const int x = op.input("x");
  Communicator* group = &op.tensor_group();
  float width = static_cast<float>(op.slot(x).width);
  group->all_reduce(TensorView(&width, DType::kFloat32, {1}));
  const int out = op.output("out", op.slot(x).rows, static_cast<int64_t>(width), op.slot(x).dtype);
  return [=](const RunContext& run) { group->all_gather(run.view(x), run.view(out)); };
}

std::map<std::string, OpBuilder>& registry() {
  static std::map<std::string, OpBuilder> builders = {{"activation", bind_activation},
                                                      {"add", bind_add},
                                                      {"all_gather", bind_all_gather},
                                                      {"all_reduce", bind_all_reduce},
                                                      {"attention", bind_attention},
                                                      {"embedding", bind_embedding},
                                                      {"gated_activation", bind_gated_activation},
                                                      {"gather_rows", bind_gather_rows},
                                                      {"layer_norm", bind_layer_norm},
                                                      {"linear", bind_linear},
                                                      {"linear_add", bind_linear_add},
                                                      {"linear_gated", bind_linear_gated},
                                                      {"rms_norm", bind_rms_norm},
                                                      {"rope_attention", bind_rope_attention},
                                                      {"rope_kv_write", bind_rope_kv_write}};
  return builders;
}

}  // namespace

void register_op(const std::string& name, OpBuilder builder) {
  check(registry().emplace(name, std::move(builder)).second, ErrorCode::kAlreadyExists, "op '", name,
        "' is registered already");
}

const OpBuilder& find_op(const std::string& name) {
  const auto found = registry().find(name);
  if (found != registry().end()) return found->second;
  std::string known;
  for (const auto& [op, builder] : registry()) known += (known.empty() ? "" : ", ") + op;
  throw Error(ErrorCode::kUnsupported, concat("unknown op '", name, "'; this build knows ", known));
}

}  // namespace inflight
