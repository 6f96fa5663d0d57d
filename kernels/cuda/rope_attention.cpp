#include "inflight/ops/attention.h"
#include "kernels/cuda/arguments.h"
#include "kernels/cuda/attention_parts.h"
#include "kernels/cuda/ops.h"

namespace inflight::cuda {
namespace {

// Each op checks its own arguments; here, that they speak of the same tensors.
void check_shared(const RopeKvWriteArgs& rope, const AttentionArgs& args) {
  const auto same = [](const char* name, const TensorView& written, const TensorView& read) {
    check(written.data == read.data && written.shape == read.shape, ErrorCode::kInvalidArgument,
          "rope_attention: ", name, " of the attention is ", describe(read), " at ", read.data, ", wanted the written ",
          describe(written), " at ", written.data);
  };
  same("q", rope.q, args.q);
  same("keys", rope.cache.keys, args.cache.keys);
  same("values", rope.cache.values, args.cache.values);
}

}  // namespace

void rope_attention(const RopeKvWriteArgs& rope, const AttentionArgs& args, const BatchView& batch,
                    DeviceContext& device) {
  check_shared(rope, args);
  check_attention(args, batch);
  check_rope_kv_write(rope, batch);
  CudaContext& context = cuda_context(device);
  const bool generates_only = batch.num_generation == rope.qkv.shape[0];
  if (generates_only && takes_rope(rope, args, batch, context)) return generation_attention(rope, args, batch, context);
  rope_kv_write(rope, batch, device);
  attention(args, batch, device);
}

}  // namespace inflight::cuda
