// Rows copied by index. An embedding table's rows are bfloat16 as the activations are, so both ops are one copy.

#include <algorithm>

#include "kernels/cuda/arguments.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"

namespace inflight::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kInFlight = 4;  // loads of a thread before its first store

// out[i] = in[rows[i]], one block a row of `units`. A kernel cannot refuse an index as the CPU's does, and the
// scheduler has checked them; one outside is clamped, so that a mistake upstream gives wrong text and not a dead
// context.
// Rows of a weight are fetched while the kernel before still runs, by the indices found then: in a generation step they
// were there before that kernel began. Indices are read past the L1 cache, which would answer the second time as it did
// the first.
template <typename Unit, bool kOfWeight>
__global__ void __launch_bounds__(kThreads)
    copy_rows(const Unit* in, const int32_t* rows, Unit* out, int64_t units, int32_t num_rows) {
  Unit group[kInFlight];
  int32_t fetched = -1;
  const auto find_row = [&] { return min(max(__ldcg(rows + blockIdx.x), 0), num_rows - 1); };
  const auto fetch = [&](int32_t row, int64_t i) {
#pragma unroll
    for (int k = 0; k < kInFlight; ++k)
      if (i + k * blockDim.x < units) group[k] = in[row * units + i + k * blockDim.x];
  };
  wait_and_let_next_start([&] {
    if constexpr (kOfWeight) fetch(fetched = find_row(), threadIdx.x);
  });
  const int32_t row = find_row();
  Unit* to = out + blockIdx.x * units;
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < units; i += kInFlight * blockDim.x) {
    if (i >= kInFlight * blockDim.x || row != fetched) fetch(row, i);
#pragma unroll
    for (int k = 0; k < kInFlight; ++k)
      if (i + k * blockDim.x < units) to[i + k * blockDim.x] = group[k];
  }
}

// out[places[i]] = in[i], one block a row.
template <typename Unit>
__global__ void __launch_bounds__(kThreads)
    scatter_rows(const Unit* in, const int32_t* places, Unit* out, int64_t units) {
  wait_and_let_next_start();
  const Unit* from = in + blockIdx.x * units;
  Unit* to = out + places[blockIdx.x] * units;
  for (int64_t i = threadIdx.x; i < units; i += blockDim.x) to[i] = from[i];
}

// Rare, so units of two bytes will do.
void place_virtual_rows(const EmbeddingArgs& args, CudaContext& context) {
  Dim r("R"), h("H", args.out.shape[1]);
  Signature("embedding")
      .view("virtual_tokens", args.virtual_tokens, {r}, kInt)
      .view("virtual_rows", args.virtual_rows, {r, h}, kBf16);
  launch(scatter_rows<uint16_t>, static_cast<unsigned>(r.value), kThreads, 0, context,
         args.virtual_rows.as<const uint16_t>(), args.virtual_tokens.as<const int32_t>(), args.out.as<uint16_t>(),
         h.value);
}

template <typename Unit, bool kOfWeight>
void launch_copy(const TensorView& in, const TensorView& rows, const TensorView& out, size_t row_bytes,
                 CudaContext& context) {
  const auto units = static_cast<int64_t>(row_bytes / sizeof(Unit));
  const auto threads = static_cast<unsigned>(std::clamp<int64_t>(divide_up(units, 32) * 32, 32, kThreads));
  launch(copy_rows<Unit, kOfWeight>, static_cast<unsigned>(rows.shape[0]), threads, 0, context, in.as<const Unit>(),
         rows.as<const int32_t>(), out.as<Unit>(), units, static_cast<int32_t>(in.shape[0]));
}

template <bool kOfWeight>
void copy_by_index(const char* op, const TensorView& in, const TensorView& rows, const TensorView& out,
                   CudaContext& context) {
  if (out.elements() == 0) return;
  check(in.shape[0] > 0, ErrorCode::kInvalidArgument, op, ": there are ", rows.shape[0], " rows to take from ",
        describe(in));
  const size_t row_bytes = static_cast<size_t>(in.shape[1]) * size_of(in.dtype);
  if (allows_vectors(row_bytes, {in.data, out.data}))
    return launch_copy<uint4, kOfWeight>(in, rows, out, row_bytes, context);
  if (size_of(in.dtype) % 2 == 0) return launch_copy<uint16_t, kOfWeight>(in, rows, out, row_bytes, context);
  launch_copy<uint8_t, kOfWeight>(in, rows, out, row_bytes, context);
}

}  // namespace

void embedding(const EmbeddingArgs& args, DeviceContext& device) {
  Dim t("T"), v("V"), h("H");
  Signature("embedding")
      .view("ids", args.ids, {t}, kInt)
      .view("table", args.table, {v, h}, kBf16)
      .view("out", args.out, {t, h}, kBf16);
  copy_by_index<true>("embedding", args.table, args.ids, args.out, cuda_context(device));
  if (args.virtual_tokens) place_virtual_rows(args, cuda_context(device));
}

void gather_rows(const GatherRowsArgs& args, DeviceContext& device) {
  Dim t("T"), l("L"), h("H");
  Signature("gather_rows")
      .view("in", args.in, {t, h}, {args.in.dtype})
      .view("rows", args.rows, {l}, kInt)
      .view("out", args.out, {l, h}, {args.in.dtype});
  copy_by_index<false>("gather_rows", args.in, args.rows, args.out, cuda_context(device));
}

}  // namespace inflight::cuda
