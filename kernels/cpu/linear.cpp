// Register tiles over rows of the weight and rows of x, vectorised along K, where both are contiguous: the weight is
// read in place, in its own format, and nothing is packed. Each output element owns one vector of partial sums that
// walks K in order and is folded at the end in one fixed order, so its bits are the same whichever tile shape computed
// it.

#include <algorithm>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/signature.h"
#include "kernels/cpu/vec.h"
#include "kernels/cpu/work.h"

namespace inflight::cpu {
namespace {

template <typename W, typename B>
struct Problem {
  const float* x;   // [M, K]
  const W* weight;  // [N, K]
  const B* bias;    // [N] or null
  float* out;       // [M, N]
  int64_t m, n, k;
};

// out[m0 .. m0 + X, n0 .. n0 + R): R·X sums, R·X + X + 1 vectors in flight.
template <int R, int X, typename W, typename B>
INFLIGHT_INLINE void tile(const Problem<W, B>& p, int64_t m0, int64_t n0) {
  const float* x = p.x + m0 * p.k;
  const W* weight = p.weight + n0 * p.k;
  Vec sums[R][X] = {};
  for_each_vec(p.k, [&](int64_t i, auto count) {
    Vec columns[X];
#pragma GCC unroll 8
    for (int c = 0; c < X; ++c) columns[c] = load_n(x + c * p.k + i, count);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec row = load_n(weight + r * p.k + i, count);
#pragma GCC unroll 8
      for (int c = 0; c < X; ++c) sums[r][c] = multiply_add(row, columns[c], sums[r][c]);
    }
  });
#pragma GCC unroll 8
  for (int c = 0; c < X; ++c)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
      p.out[(m0 + c) * p.n + n0 + r] = sum_lanes(sums[r][c]) + (p.bias ? to_float(p.bias[n0 + r]) : 0.0f);
}

// X rows of x against weight rows [begin, end), R at a time.
template <int R, int X, typename W, typename B>
void strip(const Problem<W, B>& p, int64_t m0, int64_t begin, int64_t end) {
  int64_t n = begin;
  for (; n + R <= end; n += R) tile<R, X>(p, m0, n);
  for (; n < end; ++n) tile<1, X>(p, m0, n);
}

// Rows of x are taken as evenly as tiles of at most kRowTile allow. A single row takes more weight rows at once
// instead, to keep enough independent sums in flight for the memory's full speed.
constexpr int kRowTile = 3;

template <typename W, typename B>
void block(const Problem<W, B>& p, int64_t m_begin, int64_t m_end, int64_t n_begin, int64_t n_end) {
  for (int64_t m = m_begin; m < m_end;) {
    const int64_t left = m_end - m;
    const int64_t rows = left == kRowTile + 1 ? 2 : std::min<int64_t>(left, kRowTile);
    if (rows == 3) strip<4, 3>(p, m, n_begin, n_end);
    if (rows == 2) strip<4, 2>(p, m, n_begin, n_end);
    if (rows == 1) strip<8, 1>(p, m, n_begin, n_end);
    m += rows;
  }
}

constexpr int64_t kWeightBlockBytes = 128 << 10;  // a block of weight rows stays in L2 while all rows of x pass by
constexpr int64_t kWeightBlockStep = 8;
constexpr int64_t kXBlockBytes = 512 << 10;  // and so does a block of x while the weight passes by
constexpr int64_t kXBlockRows = 96;

template <typename W, typename B>
void run(const Problem<W, B>& p, DeviceContext& context) {
  const int64_t fitting = kWeightBlockBytes / std::max<int64_t>(1, p.k * static_cast<int64_t>(sizeof(W)));
  const int64_t n_step = std::clamp(fitting / kWeightBlockStep * kWeightBlockStep, kWeightBlockStep, int64_t{64});
  const int64_t m_fitting = kXBlockBytes / std::max<int64_t>(1, p.k * static_cast<int64_t>(sizeof(float)));
  const int64_t m_step = std::min(p.m, std::clamp<int64_t>(m_fitting / kRowTile, 4, kXBlockRows / kRowTile) * kRowTile);
  const int64_t n_blocks = (p.n + n_step - 1) / n_step;
  const int64_t m_blocks = (p.m + m_step - 1) / m_step;
  parallel_items(context, n_blocks * m_blocks, n_step * m_step * p.k / kLanes, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t m = i / n_blocks * m_step;
      const int64_t n = i % n_blocks * n_step;
      block(p, m, std::min(m + m_step, p.m), n, std::min(n + n_step, p.n));
    }
  });
}

}  // namespace

void linear(const LinearArgs& args, DeviceContext& context) {
  Dim m("M"), n("N"), k("K");
  Signature("linear")
      .view("x", args.x, {m, k}, kFloat)
      .view("weight", args.weight, {n, k}, kReal)
      .optional("bias", args.bias, {n}, kReal)
      .view("out", args.out, {m, n}, kFloat);
  if (m == 0) return;
  with_real_type(args.weight.dtype, [&]<typename W>(W) {
    with_real_type(args.bias.dtype, [&]<typename B>(B) {
      run(Problem<W, B>{args.x.as<float>(), args.weight.as<W>(), args.bias.as<B>(), args.out.as<float>(), m, n, k},
          context);
    });
  });
}

}  // namespace inflight::cpu
