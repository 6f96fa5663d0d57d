#include "inflight_batcher/engine/kv_pool.h"

#include <algorithm>

#include "inflight_batcher/engine/weights.h"

namespace inflight {

std::pair<int, int> layers_of_stage(const Plan& plan, const Topology& topology, int stage) {
  const auto [first, last] = topology.layers_of(stage, plan.repeat);
  return {first * plan.unit_layers, last * plan.unit_layers};
}

KvPool place_kv_cache(const Plan& plan, int first, int last, const KvPoolShape& shape, int tp_rank, int tp_size,
                      std::byte* memory) {
  KvPool pool;
  for (int layer = first; layer < last; ++layer) {
    const PlanKvLayer& kv = plan.kv_layers[layer];
    const auto [head, head_end] = units_of_rank(kv.num_kv_heads, tp_rank, tp_size);
    const TensorView half(nullptr, shape.dtype, {shape.num_blocks, head_end - head, shape.block_size, kv.head_size});
    KvCacheView view{half, half};
    if (memory) {
      view.keys.data = memory + pool.bytes;
      view.values.data = memory + pool.bytes + half.bytes();
    }
    pool.bytes += 2 * half.bytes();
    pool.layers.push_back(view);
  }
  return pool;
}

int64_t kv_bytes_per_token(const Plan& plan, int tensor_parallel, DType dtype) {
  int64_t bytes = 0;
  for (const PlanKvLayer& layer : plan.kv_layers) {
    const int64_t heads = std::max(layer.num_kv_heads, tensor_parallel);  // shared heads are held twice
    bytes += 2 * heads * layer.head_size * static_cast<int64_t>(size_of(dtype));
  }
  return bytes;
}

}  // namespace inflight
