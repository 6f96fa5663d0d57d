// Rotary embedding and the write to the paged cache in one pass. A thread owns the same few element pairs of several
// heads of one token, so that it computes their cosines and sines once and needs nobody else's.

#include <algorithm>

#include "kernels/cuda/arguments.h"
#include "kernels/cuda/attention_parts.h"
#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/rope_angle.cuh"

namespace inflight::cuda {
namespace {

constexpr int kMaxThreads = 256;

struct Rope {
  const void* qkv;                   // [T, Hq + 2 Hkv, D]
  const float* inverse_frequencies;  // [R / 2]
  void* q;                           // [T, Hq, D]
  void* keys;                        // [N, Hkv, P, D]
  void* values;                      // [N, Hkv, P, D]
  const int32_t* positions;          // [T]
  const int32_t* token_sequences;    // [T]
  const int32_t* context_lengths;    // [S]
  const int32_t* block_tables;       // [S, B]
  int pairs, heads, kv_heads, head_size, block_size, num_blocks, table_width, num_sequences;
  float scale;
};

// Where the token's vector of KV head 0 begins in the pools, -1 where there is none to write: padding, or a position
// that the block table does not cover (the host has checked; a kernel can only decline).
__device__ __forceinline__ int64_t cache_start(const Rope& rope, int token, int position) {
  const int sequence = rope.token_sequences[token];
  if (sequence < 0 || sequence >= rope.num_sequences) return -1;
  const int index = position / rope.block_size;
  if (position < 0 || index >= rope.table_width) return -1;
  const int length = rope.context_lengths[sequence];
  const int block = rope.block_tables[static_cast<int64_t>(sequence) * rope.table_width + index];
  if (length <= 0 || block < 0 || block >= rope.num_blocks) return -1;
  const int64_t row = static_cast<int64_t>(block) * rope.kv_heads * rope.block_size + position % rope.block_size;
  return row * rope.head_size;
}

// Where head `head` of the token goes: q, keys or values; null: nowhere.
__device__ __forceinline__ uint16_t* destination(const Rope& rope, int token, int head, int64_t cache) {
  if (head < rope.heads)
    return static_cast<uint16_t*>(rope.q) + (static_cast<int64_t>(token) * rope.heads + head) * rope.head_size;
  if (cache < 0) return nullptr;
  const bool is_key = head < rope.heads + rope.kv_heads;
  const int kv_head = head - rope.heads - (is_key ? 0 : rope.kv_heads);
  return static_cast<uint16_t*>(is_key ? rope.keys : rope.values) + cache +
         static_cast<int64_t>(kv_head) * rope.block_size * rope.head_size;
}

// Block (token, slice), thread (part of a head, first head). A part is two groups of kWidth elements: kWidth pairs to
// rotate, or elements that pass through. The thread takes kHeads heads, blockDim.y apart.
template <int kWidth, int kHeads, bool kInterleaved>
__global__ void __launch_bounds__(kMaxThreads) rotate_and_write(const Rope rope) {
  using Group = Bf16Group<kWidth>;
  using Bits = typename Group::Bits;
  const int token = blockIdx.x, pair = threadIdx.x * kWidth,
            first_head = blockIdx.y * kHeads * blockDim.y + threadIdx.y;
  const int rotated_heads = rope.heads + rope.kv_heads, all_heads = rotated_heads + rope.kv_heads;
  const bool rotates = pair < rope.pairs;
  const bool halves = rotates && !kInterleaved;
  const int first = halves ? pair : 2 * pair, second = first + (halves ? rope.pairs : kWidth);
  float frequency[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) frequency[i] = rotates ? __ldg(rope.inverse_frequencies + pair + i) : 0.0f;
  wait_and_let_next_start();

  const int position = rope.positions[token];
  const auto* from = static_cast<const uint16_t*>(rope.qkv) + static_cast<int64_t>(token) * all_heads * rope.head_size;
  Bits bits[kHeads][2];
#pragma unroll
  for (int k = 0; k < kHeads; ++k) {
    const int head = first_head + k * blockDim.y;
    bits[k][0] = bits[k][1] = Bits{};
    if (head >= all_heads) continue;
    bits[k][0] = *reinterpret_cast<const Bits*>(from + head * rope.head_size + first);
    bits[k][1] = *reinterpret_cast<const Bits*>(from + head * rope.head_size + second);
  }
  const bool writes_cache = first_head + (kHeads - 1) * static_cast<int>(blockDim.y) >= rope.heads;
  const int64_t cache = writes_cache ? cache_start(rope, token, position) : -1;

  Angle angle[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    angle[i] = cosine_and_sine(static_cast<float>(position) * frequency[i]);
    angle[i] = {angle[i].cosine * rope.scale, angle[i].sine * rope.scale};
  }
#pragma unroll
  for (int k = 0; k < kHeads; ++k) {
    const int head = first_head + k * blockDim.y;
    if (head >= all_heads) continue;
    uint16_t* to = destination(rope, token, head, cache);
    if (!to) continue;
    if (rotates && head < rotated_heads) {
      float in[2 * kWidth], out[2 * kWidth];
      Group::unpack(bits[k][0], in);
      Group::unpack(bits[k][1], in + kWidth);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const int a = kInterleaved ? 2 * i : i, b = kInterleaved ? 2 * i + 1 : i + kWidth;
        const RotatedPair pair = rotate(in[a], in[b], angle[i].cosine, angle[i].sine);
        out[a] = pair.first;
        out[b] = pair.second;
      }
      bits[k][0] = Group::pack(out);
      bits[k][1] = Group::pack(out + kWidth);
    }
    *reinterpret_cast<Bits*>(to + first) = bits[k][0];
    *reinterpret_cast<Bits*>(to + second) = bits[k][1];
  }
}

using Kernel = void (*)(Rope);

// [interleaved][few tokens, many]
constexpr int kHeadsPerThread[] = {1, 4};
template <int kWidth>
constexpr Kernel kKernels[2][2] = {{rotate_and_write<kWidth, 1, false>, rotate_and_write<kWidth, 4, false>},
                                   {rotate_and_write<kWidth, 1, true>, rotate_and_write<kWidth, 4, true>}};

Rope describe_rope(const RopeKvWriteArgs& args, const BatchView& batch) {
  const KvCacheView& cache = args.cache;
  Rope rope{};
  rope.qkv = args.qkv.data;
  rope.inverse_frequencies = args.inverse_frequencies.as<const float>();
  rope.q = args.q.data;
  rope.keys = cache.keys.data;
  rope.values = cache.values.data;
  rope.positions = batch.positions.as<const int32_t>();
  rope.token_sequences = batch.token_sequences.as<const int32_t>();
  rope.context_lengths = batch.context_lengths.as<const int32_t>();
  rope.block_tables = batch.block_tables.as<const int32_t>();
  rope.pairs = args.inverse_frequencies ? static_cast<int>(args.inverse_frequencies.shape[0]) : 0;
  rope.head_size = static_cast<int>(cache.head_size());
  rope.heads = static_cast<int>(args.q.shape[1]) / rope.head_size;
  rope.kv_heads = static_cast<int>(cache.num_kv_heads());
  rope.block_size = static_cast<int>(cache.block_size());
  rope.num_blocks = static_cast<int>(cache.num_blocks());
  rope.table_width = static_cast<int>(batch.block_tables.shape[1]);
  rope.num_sequences = static_cast<int>(batch.num_sequences());
  rope.scale = args.rope_scale;
  return rope;
}

bool fits_vectors(const Rope& rope) {
  const bool whole_parts = rope.head_size % (2 * kVectorSize) == 0 && rope.pairs % kVectorSize == 0;
  return whole_parts && allows_vectors(0, {rope.qkv, rope.q, rope.keys, rope.values});
}

}  // namespace

void check_rope_kv_write(const RopeKvWriteArgs& args, const BatchView& batch) {
  Dim n("N"), kv_heads("Hkv"), p("P"), d("D"), t("T"), q_size("Hq D"), s("S"), b("B"), pairs("R/2");
  Signature signature("rope_kv_write");
  signature.view("cache keys", args.cache.keys, {n, kv_heads, p, d}, kBf16)
      .view("cache values", args.cache.values, {n, kv_heads, p, d}, kBf16)
      .view("q", args.q, {t, q_size}, kBf16)
      .view("positions", batch.positions, {t}, kInt)
      .view("token_sequences", batch.token_sequences, {t}, kInt)
      .view("context_lengths", batch.context_lengths, {s}, kInt)
      .view("block_tables", batch.block_tables, {s, b}, kInt)
      .optional("inverse_frequencies", args.inverse_frequencies, {pairs}, kFloat32);
  check(d > 0 && q_size % d == 0, ErrorCode::kInvalidArgument, "rope_kv_write: q ", describe(args.q),
        " is no whole number of heads of size ", d.value);
  check(2 * pairs <= d, ErrorCode::kInvalidArgument, "rope_kv_write: ", pairs.value,
        " frequencies rotate more than the head size ", d.value);
  check(d % 2 == 0 && d <= 2 * kMaxThreads, ErrorCode::kUnsupported, "rope_kv_write: head size ", d.value,
        ", wanted an even one up to ", 2 * kMaxThreads);
  check(p > 0, ErrorCode::kInvalidArgument, "rope_kv_write: cache keys ", describe(args.cache.keys),
        " have blocks of no tokens");
  Dim qkv_size("(Hq + 2 Hkv) D", q_size + 2 * kv_heads * d);
  signature.view("qkv", args.qkv, {t, qkv_size}, kBf16);
}

void rope_kv_write(const RopeKvWriteArgs& args, const BatchView& batch, DeviceContext& device) {
  check_rope_kv_write(args, batch);
  const Rope rope = describe_rope(args, batch);
  CudaContext& context = cuda_context(device);
  const bool vectors = fits_vectors(rope);
  const auto tokens = static_cast<int>(args.qkv.shape[0]);
  const bool many = tokens > 2 * context.num_sms();
  const int all_heads = rope.heads + 2 * rope.kv_heads, heads_per_thread = kHeadsPerThread[many];
  const int parts = rope.head_size / (vectors ? 2 * kVectorSize : 2);
  const int most_rows = std::max(1, (many ? kMaxThreads : kMaxThreads / 2) / parts);
  const int rows = std::min(most_rows, static_cast<int>(divide_up(all_heads, heads_per_thread)));
  const auto slices = static_cast<unsigned>(divide_up(all_heads, rows * heads_per_thread));
  const Kernel kernel = (vectors ? kKernels<kVectorSize> : kKernels<1>)[args.interleaved][many];
  launch(kernel, dim3(tokens, slices), dim3(parts, rows), 0, context, rope);
}

}  // namespace inflight::cuda
