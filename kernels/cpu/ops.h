#pragma once

#include <span>

#include "inflight/op_table.h"

/// The entries of the CPU's op table, one file an op family.
namespace inflight::cpu {

void embedding(const EmbeddingArgs& args, DeviceContext& context);
void gather_rows(const GatherRowsArgs& args, DeviceContext& context);
void linear(const LinearArgs& args, DeviceContext& context);
void rms_norm(const RmsNormArgs& args, DeviceContext& context);
void layer_norm(const LayerNormArgs& args, DeviceContext& context);
void activation(const ActivationArgs& args, DeviceContext& context);
void gated_activation(const GatedActivationArgs& args, DeviceContext& context);
void add(const AddArgs& args, DeviceContext& context);
void rope_kv_write(const RopeKvWriteArgs& args, const BatchView& batch, DeviceContext& context);
void attention(const AttentionArgs& args, const BatchView& batch, DeviceContext& context);
void copy_kv_blocks(std::span<const KvCacheView> layers, std::span<const KvCacheView> host_layers,
                    std::span<const KvBlockCopy> copies, DeviceContext& context);
void sample(const SampleArgs& args, DeviceContext& context);
void best_candidates(const CandidatesArgs& args, DeviceContext& context);

}  // namespace inflight::cpu
