// Elementwise: one vector function for each activation, the same for whole vectors and tails.

#include <cmath>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/signature.h"
#include "kernels/cpu/vec.h"
#include "kernels/cpu/work.h"

namespace inflight::cpu {
namespace {

INFLIGHT_INLINE Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

struct Silu {
  INFLIGHT_INLINE Vec apply(Vec x) { return x * sigmoid(x); }
};

struct Gelu {
  INFLIGHT_INLINE Vec apply(Vec x) {
    Vec out;
    for (int i = 0; i < kLanes; ++i) out[i] = 0.5f * x[i] * std::erfc(x[i] * -0.70710678f);
    return out;
  }
};

// (1 + tanh u) / 2 is sigmoid(2 u), without the cancellation at negative u.
struct GeluTanh {
  INFLIGHT_INLINE Vec apply(Vec x) {
    constexpr float kTwoSqrtTwoOverPi = 1.59576912f;
    return x * sigmoid(kTwoSqrtTwoOverPi * multiply_add(x * x * x, broadcast(0.044715f), x));
  }
};

struct Relu {
  INFLIGHT_INLINE Vec apply(Vec x) { return x < 0.0f ? Vec{} : x; }
};

template <typename Body>
void with_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::kSilu: return body(Silu{});
    case Activation::kGelu: return body(Gelu{});
    case Activation::kGeluTanh: return body(GeluTanh{});
    case Activation::kRelu: return body(Relu{});
  }
  throw Error(ErrorCode::kUnsupported, concat("activation: no activation number ", static_cast<int>(activation)));
}

constexpr int64_t kElementsPerItem = 1024;

// Calls body(begin, end) over ranges of [0, elements).
template <typename Body>
void for_each_range(DeviceContext& context, int64_t elements, const Body& body) {
  const int64_t items = (elements + kElementsPerItem - 1) / kElementsPerItem;
  parallel_items(context, items, kElementsPerItem, [&](int64_t begin, int64_t end) {
    body(begin * kElementsPerItem, std::min(end * kElementsPerItem, elements));
  });
}

}  // namespace

void activation(const ActivationArgs& args, DeviceContext& context) {
  Dim m("M"), n("N");
  Signature("activation").view("x", args.x, {m, n}, kFloat).view("out", args.out, {m, n}, kFloat);
  const float* x = args.x.as<float>();
  float* out = args.out.as<float>();
  with_activation(args.activation, [&]<typename F>(F) {
    for_each_range(context, m * n, [&](int64_t begin, int64_t end) {
      for_each_vec(end - begin, [&](int64_t i, auto count) {
        store_n(out + begin + i, F::apply(load_n(x + begin + i, count)), count);
      });
    });
  });
}

void gated_activation(const GatedActivationArgs& args, DeviceContext& context) {
  Dim m("M"), n("N");
  Signature("gated_activation").view("out", args.out, {m, n}, kFloat);
  Dim two_n("2 N", 2 * n);
  Signature("gated_activation").view("x", args.x, {m, two_n}, kFloat);
  with_activation(args.activation, [&]<typename F>(F) {
    parallel_items(context, m, n, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const float* gate = args.x.as<float>() + row * 2 * n;
        const float* up = gate + n;
        float* out = args.out.as<float>() + row * n;
        for_each_vec(n, [&](int64_t i, auto count) {
          store_n(out + i, F::apply(load_n(gate + i, count)) * load_n(up + i, count), count);
        });
      }
    });
  });
}

void add(const AddArgs& args, DeviceContext& context) {
  Dim m("M"), n("N");
  Signature("add")
      .view("a", args.a, {m, n}, kFloat)
      .view("b", args.b, {m, n}, kFloat)
      .view("out", args.out, {m, n}, kFloat);
  const float* a = args.a.as<float>();
  const float* b = args.b.as<float>();
  float* out = args.out.as<float>();
  for_each_range(context, m * n, [&](int64_t begin, int64_t end) {
    for_each_vec(end - begin, [&](int64_t i, auto count) {
      store_n(out + begin + i, load_n(a + begin + i, count) + load_n(b + begin + i, count), count);
    });
  });
}

}  // namespace inflight::cpu
