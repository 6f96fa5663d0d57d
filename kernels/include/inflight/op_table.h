#pragma once

#include <span>

#include "inflight/ops/activation.h"
#include "inflight/ops/attention.h"
#include "inflight/ops/embedding.h"
#include "inflight/ops/linear.h"
#include "inflight/ops/norm.h"
#include "inflight/ops/sampling.h"

namespace inflight {

/// The instruction set of one device: what each operation of a plan runs. A null entry is an operation the device
/// lacks; the engine refuses a plan that needs it when it loads.
struct OpTable {
  const char* device = "";
  /// Once a step, before its other ops: what the layers share of their work plans. May be null.
  void (*prepare_step)(const BatchView&, DeviceContext&) = nullptr;
  void (*embedding)(const EmbeddingArgs&, DeviceContext&) = nullptr;
  void (*gather_rows)(const GatherRowsArgs&, DeviceContext&) = nullptr;
  void (*linear)(const LinearArgs&, DeviceContext&) = nullptr;
  void (*linear_gated)(const LinearGatedArgs&, DeviceContext&) = nullptr;  // may be null: linear, gated_activation
  void (*linear_add)(const LinearAddArgs&,
                     DeviceContext&) = nullptr;  // may be null: linear, then add or a norm's residual
  void (*rms_norm)(const RmsNormArgs&, DeviceContext&) = nullptr;
  void (*layer_norm)(const LayerNormArgs&, DeviceContext&) = nullptr;
  void (*activation)(const ActivationArgs&, DeviceContext&) = nullptr;
  void (*gated_activation)(const GatedActivationArgs&, DeviceContext&) = nullptr;
  void (*add)(const AddArgs&, DeviceContext&) = nullptr;
  void (*rope_kv_write)(const RopeKvWriteArgs&, const BatchView&, DeviceContext&) = nullptr;
  void (*attention)(const AttentionArgs&, const BatchView&, DeviceContext&) = nullptr;
  /// Both of the above in this order, where they have one q and one cache. What q holds afterwards is not said. The KV
  /// block of a new token belongs to its sequence alone: others may read theirs while it is written.
  void (*rope_attention)(const RopeKvWriteArgs&, const AttentionArgs&, const BatchView&,
                         DeviceContext&) = nullptr;  // may be null: rope_kv_write, then attention
  /// In order: a copy may read what an earlier one wrote. `host_layers`: as many layers of the same heads, blocks and
  /// dtype in memory that the device reads and writes itself (page-locked), or none.
  void (*copy_kv_blocks)(std::span<const KvCacheView> layers, std::span<const KvCacheView> host_layers,
                         std::span<const KvBlockCopy>, DeviceContext&) = nullptr;
  void (*sample)(const SampleArgs&, DeviceContext&) = nullptr;
  void (*best_candidates)(const CandidatesArgs&, DeviceContext&) = nullptr;
};

}  // namespace inflight
