#pragma once

#include <vector>

#include "inflight/batch.h"
#include "inflight_batcher/engine/plan.h"
#include "inflight_batcher/parallel/communicator.h"

namespace inflight {

struct KvPoolShape {
  int num_blocks = 0;
  int block_size = 0;
  DType dtype = DType::kFloat32;
};

/// The KV cache of some layers, one layer behind the other: keys, then values.
struct KvPool {
  std::vector<KvCacheView> layers;
  size_t bytes = 0;
};

/// Layers [first, last) of a pipeline stage.
std::pair<int, int> layers_of_stage(const Plan& plan, const Topology& topology, int stage);

/// Lays the cache of layers [first, last) out at `memory`, which may be null to learn its size. KV heads that are fewer
/// than the ranks are held by several.
KvPool place_kv_cache(const Plan& plan, int first, int last, const KvPoolShape& shape, int tp_rank, int tp_size,
                      std::byte* memory);

/// Of all layers and ranks together.
int64_t kv_bytes_per_token(const Plan& plan, int tensor_parallel, DType dtype);

}  // namespace inflight
