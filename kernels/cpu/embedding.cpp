// Rows copied by index; the embedding table's rows are converted to float32 on the way.

#include <cstring>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/signature.h"
#include "kernels/cpu/vec.h"
#include "kernels/cpu/work.h"

namespace inflight::cpu {
namespace {

// Virtual tokens may have any id.
void check_ids(const EmbeddingArgs& args, int64_t vocabulary) {
  const int32_t* ids = args.ids.as<int32_t>();
  const int32_t* skipped = args.virtual_tokens.as<int32_t>();
  const int32_t* end = skipped + (args.virtual_tokens ? args.virtual_tokens.shape[0] : 0);
  for (int64_t i = 0; i < args.ids.shape[0]; ++i) {
    if (skipped != end && *skipped == i) {
      ++skipped;
      continue;
    }
    check(ids[i] >= 0 && ids[i] < vocabulary, ErrorCode::kInternal, "embedding: id ", ids[i], " at ", i,
          " is outside [0, ", vocabulary, ")");
  }
  check(skipped == end, ErrorCode::kInternal, "embedding: the virtual tokens are not ascending places of ",
        args.ids.shape[0], " tokens");
}

void check_indices(const char* what, const TensorView& indices, int64_t limit) {
  const auto* index = indices.as<int32_t>();
  for (int64_t i = 0; i < indices.shape[0]; ++i)
    check(index[i] >= 0 && index[i] < limit, ErrorCode::kInternal, what, " ", index[i], " at ", i, " is outside [0, ",
          limit, ")");
}

template <typename T>
void convert_row(const T* from, float* to, int64_t size) {
  for_each_vec(size, [&](int64_t i, auto count) { store_n(to + i, load_n(from + i, count), count); });
}

}  // namespace

void embedding(const EmbeddingArgs& args, DeviceContext& context) {
  Dim t("T"), v("V"), h("H");
  Signature("embedding")
      .view("ids", args.ids, {t}, kInt)
      .view("table", args.table, {v, h}, kReal)
      .view("out", args.out, {t, h}, kFloat);
  Dim r("R");
  if (args.virtual_tokens)
    Signature("embedding")
        .view("virtual_tokens", args.virtual_tokens, {r}, kInt)
        .view("virtual_rows", args.virtual_rows, {r, h}, kFloat);
  check_ids(args, v);
  with_real_type(args.table.dtype, [&]<typename T>(T) {
    const int32_t* ids = args.ids.as<int32_t>();
    const T* table = args.table.as<T>();  // [V, H]
    float* out = args.out.as<float>();    // [T, H]
    parallel_items(context, t, h, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        if (ids[i] >= 0 && ids[i] < v) convert_row(table + ids[i] * h, out + i * h, h);
    });
    if (!args.virtual_tokens) return;
    const int32_t* places = args.virtual_tokens.as<int32_t>();
    for (int64_t i = 0; i < r; ++i) convert_row(args.virtual_rows.as<float>() + i * h, out + places[i] * h, h);
  });
}

void gather_rows(const GatherRowsArgs& args, DeviceContext& context) {
  Dim t("T"), l("L"), h("H");
  Signature("gather_rows")
      .view("in", args.in, {t, h}, {args.in.dtype})
      .view("rows", args.rows, {l}, kInt)
      .view("out", args.out, {l, h}, {args.in.dtype});
  check_indices("gather_rows: row", args.rows, t);
  const int32_t* rows = args.rows.as<int32_t>();
  const size_t row_bytes = static_cast<size_t>(h) * size_of(args.in.dtype);
  const auto* in = args.in.as<std::byte>();
  auto* out = args.out.as<std::byte>();
  parallel_items(context, l, h, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) std::memcpy(out + i * row_bytes, in + rows[i] * row_bytes, row_bytes);
  });
}

}  // namespace inflight::cpu
