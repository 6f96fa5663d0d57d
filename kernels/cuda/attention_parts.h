#pragma once

#include "inflight/ops/attention.h"
#include "kernels/cuda/cuda.h"

/// The two halves of the attention op. The first num_generation sequences of a batch have one new token each; for the
/// rest (context chunks, also of one token) the other kernel is made.
namespace inflight::cuda {

/// Throw Error(kInvalidArgument) naming what does not fit.
void check_attention(const AttentionArgs& args, const BatchView& batch);
void check_rope_kv_write(const RopeKvWriteArgs& args, const BatchView& batch);

/// Once a step, before the layers: each half may lay out its work for them from the batch's device arrays.
void plan_generation_attention(const BatchView& batch, CudaContext& context);
void plan_context_attention(const BatchView& batch, CudaContext& context);

/// Rows [0, num_generation) of args.q and args.out. Runs inside captured graphs: nothing may depend on the host's
/// knowledge of lengths, only on batch.num_generation and the device arrays.
void generation_attention(const AttentionArgs& args, const BatchView& batch, CudaContext& context);

/// The same from queries, keys and values that are not rotated yet: rotates them and writes the new keys and values
/// into the cache on the way. args.q is neither read nor written; a batch without context chunks.
void generation_attention(const RopeKvWriteArgs& rope, const AttentionArgs& args, const BatchView& batch,
                          CudaContext& context);

/// Whether there is a kernel for that, and it pays: whole heads rotated in halves, no sinks, not batch-invariant (where
/// the ops apart must not differ by a rounding), and few sequences.
bool takes_rope(const RopeKvWriteArgs& rope, const AttentionArgs& args, const BatchView& batch,
                const CudaContext& context);

/// Rows [num_generation, T) of args.q and args.out: the tokens of sequences [num_generation, S).
void context_attention(const AttentionArgs& args, const BatchView& batch, CudaContext& context);

}  // namespace inflight::cuda
