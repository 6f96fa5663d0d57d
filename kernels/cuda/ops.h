#pragma once

#include "inflight/op_table.h"

/// The entries of the CUDA op table, one declaration an op; each is defined beside its kernel.
namespace inflight::cuda {

void prepare_step(const BatchView& batch, DeviceContext& device);
void embedding(const EmbeddingArgs& args, DeviceContext& device);
void gather_rows(const GatherRowsArgs& args, DeviceContext& device);
void linear(const LinearArgs& args, DeviceContext& device);
void linear_gated(const LinearGatedArgs& args, DeviceContext& device);
void linear_add(const LinearAddArgs& args, DeviceContext& device);
void rms_norm(const RmsNormArgs& args, DeviceContext& device);
void layer_norm(const LayerNormArgs& args, DeviceContext& device);
void activation(const ActivationArgs& args, DeviceContext& device);
void gated_activation(const GatedActivationArgs& args, DeviceContext& device);
void add(const AddArgs& args, DeviceContext& device);
void rope_kv_write(const RopeKvWriteArgs& args, const BatchView& batch, DeviceContext& device);
void attention(const AttentionArgs& args, const BatchView& batch, DeviceContext& device);
void rope_attention(const RopeKvWriteArgs& rope, const AttentionArgs& args, const BatchView& batch,
                    DeviceContext& device);
void copy_kv_blocks(std::span<const KvCacheView> layers, std::span<const KvCacheView> host_layers,
                    std::span<const KvBlockCopy> copies, DeviceContext& device);

}  // namespace inflight::cuda
