#include "kernels/cuda/linear.h"

#include <algorithm>

#include "kernels/cuda/arguments.h"
#include "kernels/cuda/gemm_tuner.h"
#include "kernels/cuda/linear_engine.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/tuning_file.h"

namespace inflight::cuda {
namespace {

constexpr DTypes kOut = {DType::kBfloat16, DType::kFloat32};

// What cannot be read 16 bytes at a time is left to the plain kernel.
void run_linear(const LinearKey& key, const LinearMemory& memory, CudaContext& context) {
  if (key.m == 0 || key.n == 0) return;
  static constexpr LinearChoice kPlain{};
  const bool aligned =
      key.k > 0 && allows_vectors(0, {memory.x, memory.weight, memory.bias, memory.scratch, memory.out});
  LinearEngine& engine = context.state<LinearEngine>();
  engine.run(key, memory, aligned ? engine.choose(key) : kPlain);
}

std::vector<LinearKey> keys_of(std::span<const LinearShape> shapes, int max_tokens) {
  std::vector<LinearKey> keys;
  for (const LinearShape& shape : shapes) {
    const int most = shape.max_rows > 0 ? std::min(shape.max_rows, max_tokens) : max_tokens;
    for (const int rows : row_buckets())
      if (rows <= bucket_of(most))
        keys.push_back({rows, shape.n, shape.k, shape.float_out, shape.bias, shape.gated, shape.add});
  }
  std::sort(keys.begin(), keys.end());
  keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
  return keys;
}

// Timed alone, a product does not show that an own kernel reads its weight while the kernel before still runs, and lets
// the next one do so: among other ops it is worth this much more.
constexpr double kOverlapGain = 1.08;

LinearChoice best_of(const std::vector<GemmTuner::Timed>& timed) {
  const auto own = std::find_if(timed.begin(), timed.end(), [](const GemmTuner::Timed& it) {
    return it.choice.kind == LinearChoice::Kind::kSkinny || it.choice.kind == LinearChoice::Kind::kSlim;
  });
  const bool close = own != timed.end() && own->microseconds <= kOverlapGain * timed.front().microseconds;
  return (close ? *own : timed.front()).choice;
}

}  // namespace

void linear(const LinearArgs& args, DeviceContext& device) {
  Dim m("M"), n("N"), k("K");
  Signature("linear")
      .view("x", args.x, {m, k}, kBf16)
      .view("weight", args.weight, {n, k}, kBf16)
      .optional("bias", args.bias, {n}, kBf16)
      .view("out", args.out, {m, n}, kOut);
  const bool float_out = args.out.dtype == DType::kFloat32;
  run_linear({m, n, k, float_out, static_cast<bool>(args.bias), false},
             {args.x.data, args.weight.data, args.bias.data, nullptr, args.out.data, Activation::kSilu, args.x_rows},
             cuda_context(device));
}

void linear_gated(const LinearGatedArgs& args, DeviceContext& device) {
  Dim m("M"), n("N"), k("K");
  Signature("linear_gated").view("x", args.x, {m, k}, kBf16).view("out", args.out, {m, n}, kBf16);
  Dim two_n("2 N", 2 * n);
  Signature("linear_gated")
      .view("weight", args.weight, {two_n, k}, kBf16)
      .view("scratch", args.scratch, {m, two_n}, kBf16);
  check(static_cast<size_t>(args.activation) <= static_cast<size_t>(Activation::kRelu), ErrorCode::kUnsupported,
        "linear_gated: no activation number ", static_cast<int>(args.activation));
  run_linear({m, n, k, false, false, true},
             {args.x.data, args.weight.data, nullptr, args.scratch.data, args.out.data, args.activation, args.x_rows},
             cuda_context(device));
}

void linear_add(const LinearAddArgs& args, DeviceContext& device) {
  Dim m("M"), n("N"), k("K");
  Signature("linear_add")
      .view("x", args.x, {m, k}, kBf16)
      .view("weight", args.weight, {n, k}, kBf16)
      .optional("bias", args.bias, {n}, kBf16)
      .view("residual", args.residual, {m, n}, kBf16);
  run_linear(
      {m, n, k, false, static_cast<bool>(args.bias), false, true},
      {args.x.data, args.weight.data, args.bias.data, nullptr, args.residual.data, Activation::kSilu, args.x_rows},
      cuda_context(device));
}

void tune_linear(std::span<const LinearShape> shapes, int max_tokens, CudaContext& context) {
  LinearEngine& engine = context.state<LinearEngine>();
  if (context.options().batch_invariant) return;
  TuningFile file(context.options().tuning_cache);
  const auto name_of = [&](const LinearKey& key) { return concat(engine.machine(), ": ", text_of(key)); };
  std::vector<LinearKey> untimed;
  for (const LinearKey& key : keys_of(shapes, max_tokens)) {
    const std::string* known = file.find(name_of(key));
    const std::optional<LinearChoice> choice = known ? choice_of(*known) : std::nullopt;
    if (choice && engine.accepts(key, *choice))
      engine.set_tuned(key, *choice);
    else
      untimed.push_back(key);
  }
  if (untimed.empty()) return;
  GemmTuner tuner(engine, untimed, context);
  for (const LinearKey& key : untimed) {
    const LinearChoice best = best_of(tuner.time(key));
    engine.set_tuned(key, best);
    file.set(name_of(key), text_of(best));
  }
  context.synchronize();
  file.save();  // where it cannot be written, the next process times again
}

}  // namespace inflight::cuda
