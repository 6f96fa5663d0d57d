// One row at a time, in cache: residual addition, statistics, scaling. Sums run along the row in vectors, in one order.

#include <cmath>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/signature.h"
#include "kernels/cpu/vec.h"
#include "kernels/cpu/work.h"

namespace inflight::cpu {
namespace {

// residual += x; the row to normalise is then residual.
const float* add_residual(float* residual, const float* x, int64_t size) {
  for_each_vec(size, [&](int64_t i, auto count) {
    store_n(residual + i, load_n(residual + i, count) + load_n(x + i, count), count);
  });
  return residual;
}

float sum(const float* row, int64_t size) {
  Vec total = {};
  for_each_vec(size, [&](int64_t i, auto count) { total += load_n(row + i, count); });
  return sum_lanes(total);
}

// Σ (row - center)²; the tail's padding must not count.
float sum_of_squares(const float* row, int64_t size, float center) {
  Vec total = {};
  const int64_t whole = size / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    const Vec difference = load(row + i) - center;
    total = multiply_add(difference, difference, total);
  }
  if (whole < size) {
    float tail[kLanes] = {};
    for (int64_t i = whole; i < size; ++i) tail[i - whole] = row[i] - center;
    total = multiply_add(load(tail), load(tail), total);
  }
  return sum_lanes(total);
}

template <typename W>
void rms_norm_row(const float* row, const W* weight, float* out, int64_t size, float epsilon) {
  const float scale = 1.0f / std::sqrt(sum_of_squares(row, size, 0.0f) / static_cast<float>(size) + epsilon);
  for_each_vec(size, [&](int64_t i, auto count) {
    store_n(out + i, load_n(row + i, count) * scale * load_n(weight + i, count), count);
  });
}

template <typename W, typename B>
void layer_norm_row(const float* row, const W* weight, const B* bias, float* out, int64_t size, float epsilon) {
  const float mean = sum(row, size) / static_cast<float>(size);
  const float variance = sum_of_squares(row, size, mean) / static_cast<float>(size);
  const float scale = 1.0f / std::sqrt(variance + epsilon);
  for_each_vec(size, [&](int64_t i, auto count) {
    const Vec normal = (load_n(row + i, count) - mean) * scale;
    const Vec offset = bias ? load_n(bias + i, count) : Vec{};
    store_n(out + i, multiply_add(normal, load_n(weight + i, count), offset), count);
  });
}

// Calls normalise(row, out) for each row of x, residual added first.
template <typename Normalise>
void for_each_row(const TensorView& x, const TensorView& residual, const TensorView& out, DeviceContext& context,
                  const Normalise& normalise) {
  const int64_t size = x.shape[1];
  parallel_items(context, x.shape[0], size, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * size; i < end * size; i += size) {
      const float* row = x.as<float>() + i;
      if (residual) row = add_residual(residual.as<float>() + i, row, size);
      normalise(row, out.as<float>() + i);
    }
  });
}

}  // namespace

void rms_norm(const RmsNormArgs& args, DeviceContext& context) {
  Dim m("M"), h("H");
  Signature("rms_norm")
      .view("x", args.x, {m, h}, kFloat)
      .optional("residual", args.residual, {m, h}, kFloat)
      .view("weight", args.weight, {h}, kReal)
      .view("out", args.out, {m, h}, kFloat);
  with_real_type(args.weight.dtype, [&]<typename W>(W) {
    for_each_row(args.x, args.residual, args.out, context,
                 [&](const float* row, float* out) { rms_norm_row(row, args.weight.as<W>(), out, h, args.epsilon); });
  });
}

void layer_norm(const LayerNormArgs& args, DeviceContext& context) {
  Dim m("M"), h("H");
  Signature("layer_norm")
      .view("x", args.x, {m, h}, kFloat)
      .optional("residual", args.residual, {m, h}, kFloat)
      .view("weight", args.weight, {h}, kReal)
      .optional("bias", args.bias, {h}, kReal)
      .view("out", args.out, {m, h}, kFloat);
  with_real_type(args.weight.dtype, [&]<typename W>(W) {
    with_real_type(args.bias.dtype, [&]<typename B>(B) {
      for_each_row(args.x, args.residual, args.out, context, [&](const float* row, float* out) {
        layer_norm_row(row, args.weight.as<W>(), args.bias.as<B>(), out, h, args.epsilon);
      });
    });
  });
}

}  // namespace inflight::cpu
