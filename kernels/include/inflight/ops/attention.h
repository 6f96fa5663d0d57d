#pragma once

#include "inflight/batch.h"
#include "inflight/device.h"
#include "inflight/tensor.h"

namespace inflight {

/// Rotates queries and keys by position (Su et al. 2021, "RoFormer"), writes the new keys and values into the paged
/// cache (converted to its dtype) and leaves the rotated queries in q (rope_attention: may leave anything there).
/// R = 2 · |inverse_frequencies| leading elements of each head are rotated, the rest pass through; no frequencies: no
/// rotation. Element pairs are (i, i + R/2), or (2i, 2i + 1) when `interleaved`.
struct RopeKvWriteArgs {
  TensorView qkv;                  // [T, (Hq + 2 Hkv) · D]: queries, keys, values side by side
  TensorView inverse_frequencies;  // [R / 2] float32 or absent
  float rope_scale = 1.0f;         // factor on cos and sin (YaRN's attention factor)
  bool interleaved = false;
  KvCacheView cache;
  TensorView q;  // [T, Hq · D] out
};

/// Causal attention of packed queries over the paged cache: out[t] = softmax(scale · q[t] · Kᵀ) · V over the cache
/// positions of the token's sequence up to its own. Query head h reads KV head h / (Hq / Hkv).
/// A token's result is bit-identical for any chunking and any company in the batch.
struct AttentionArgs {
  TensorView q;  // [T, Hq · D]
  KvCacheView cache;
  TensorView alibi_slopes;  // [Hq] float32 or absent (Press et al. 2021): adds slope · (key position - query position)
  float scale = 1.0f;
  int window = 0;         // > 0: a query at p sees keys in (p - window, p]
  float soft_cap = 0.0f;  // > 0: scores become cap · tanh(score / cap) before masking
  TensorView out;         // [T, Hq · D]
  int sinks = 0;          // with a window: keys [0, sinks) are visible from everywhere (Xiao et al. 2023)
};

/// Where a KV block lies: in the cache that attention reads, or in the host's memory beside it.
enum class KvMemory : uint8_t { kDevice, kHost };

/// One block of every layer copied within the cache (partial-block reuse), to the host's memory or back: tokens
/// [0, num_tokens) of `source`.
struct KvBlockCopy {
  int source = 0;
  int destination = 0;
  int num_tokens = 0;
  KvMemory from = KvMemory::kDevice;
  KvMemory to = KvMemory::kDevice;
};

}  // namespace inflight
