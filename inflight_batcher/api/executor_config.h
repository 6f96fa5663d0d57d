#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace inflight {

/// What happens when the KV cache cannot hold everybody.
enum class CapacityPolicy {
  kGuaranteedNoEvict,  // admit a request only if its KV blocks suffice to its last possible token
  kMaxUtilization,     // admit what fits now; pause the youngest and recompute it later
};

struct KvCacheConfig {
  std::optional<int64_t> max_tokens;     // capacity of the pool in tokens; absent: from the memory fraction
  double free_memory_fraction = 0.9;     // of the device memory free after the weights (CPU: see cpu_memory_bytes)
  int64_t cpu_memory_bytes = 1LL << 30;  // CPU engine: the memory that the fraction is taken of
  std::optional<int> block_size;         // tokens, a power of two; absent: 64 on a GPU, 32 on the CPU
  bool enable_block_reuse = true;
  bool enable_partial_reuse = true;    // also reuse the leading part of a block, by copying it
  int64_t host_memory_bytes = 0;       // of all ranks: where blocks move that would be evicted (on a GPU page-locked)
  std::vector<int> attention_windows;  // cycled over the layers: a token sees at most so many last ones; empty: all
  int sink_tokens = 0;                 // first tokens of a sequence that a window never hides
  bool onboard_blocks = true;          // and come back from when a prompt wants them; false: they are not found

  bool operator==(const KvCacheConfig&) const = default;
};

struct ExecutorConfig {
  std::string device = "auto";  // "cpu", "cuda" or "auto": cuda where there is one
  int tensor_parallel = 1;
  int pipeline_parallel = 1;
  int num_threads = 0;                     // CPU worker threads of all ranks together; 0 = the processors available
  int max_batch_size = 256;                // sequences in flight
  int max_num_tokens = 2048;               // tokens of one step
  int max_beam_width = 1;                  // of a request, at most 128; its beams count as sequences in flight
  std::optional<int> max_sequence_length;  // prompt + generated; absent: what the network has positions for
  int max_queue_size = 0;                  // waiting requests; 0 = unlimited
  int64_t max_logits_bytes = 1LL << 30;    // host memory that one request may ask for as returned logits
  bool enable_chunked_context = true;
  /// Plan a step while the one before still runs, its sampled tokens unknown to the host. Absent: on a GPU, not on the
  /// CPU.
  std::optional<bool> plan_ahead;
  /// GPU: every sum in an order that does not depend on the batch, so that a request's tokens are the same in any
  /// company (the CPU always does so).
  bool batch_invariant = false;
  bool random_weights = false;  // weights of the plan's shapes, drawn at random: to measure speed without a checkpoint
  CapacityPolicy capacity_policy = CapacityPolicy::kGuaranteedNoEvict;
  KvCacheConfig kv_cache;

  bool operator==(const ExecutorConfig&) const = default;
};

}  // namespace inflight
