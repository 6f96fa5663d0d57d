#include "kernels/cuda/cuda.h"
#include "kernels/cuda/ops.h"

namespace inflight::cuda {

const OpTable& op_table() {
  static constexpr OpTable kTable = {
      .device = "cuda",
      .prepare_step = prepare_step,
      .embedding = embedding,
      .gather_rows = gather_rows,
      .linear = linear,
      .linear_gated = linear_gated,
      .linear_add = linear_add,
      .rms_norm = rms_norm,
      .layer_norm = layer_norm,
      .activation = activation,
      .gated_activation = gated_activation,
      .add = add,
      .rope_kv_write = rope_kv_write,
      .attention = attention,
      .rope_attention = rope_attention,
      .copy_kv_blocks = copy_kv_blocks,
  };
  return kTable;
}

}  // namespace inflight::cuda
