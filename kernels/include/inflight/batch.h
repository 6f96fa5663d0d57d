#pragma once

#include "inflight/tensor.h"

namespace inflight {

/// One step of the whole batch as the kernels see it: the new tokens of all scheduled sequences, packed end to end
/// without padding. Context chunks, generation tokens and draft tokens are the same thing here.
///
/// T = packed tokens, S = sequences, L = rows whose logits are wanted, B = widest block table of the step.
/// A sequence whose context length is 0 is padding (a captured graph has a fixed number of sequences): its tokens write
/// nothing to the cache, and its attention output is zero.
struct BatchView {
  TensorView token_ids;        // [T] int32
  TensorView positions;        // [T] int32: index of the token in its sequence, from 0
  TensorView token_sequences;  // [T] int32: which of the S sequences the token belongs to
  TensorView query_offsets;    // [S + 1] int32: tokens of sequence s are [query_offsets[s], query_offsets[s + 1])
  TensorView context_lengths;  // [S] int32: tokens of the sequence in the KV cache once this step's are written
  TensorView block_tables;     // [S, B] int32: KV block that holds tokens [i * block_size, (i + 1) * block_size)
  TensorView logits_rows;      // [L] int32: packed token indices
  TensorView virtual_tokens;   // [R] int32: packed indices of tokens whose embedding is not the table's, or absent
  TensorView virtual_rows;     // [R, hidden size]: their embeddings, of the activations' dtype
  int max_query_length = 0;    // most new tokens of one sequence
  int max_context_length = 0;
  /// Leading sequences with exactly one new token: token i is sequence i's, at position context_lengths[i] - 1. A
  /// device may have a kernel of its own for them.
  int num_generation = 0;
  bool logits_rows_are_all_tokens = false;  // that L = T and logits_rows[i] = i is known; no promise where false

  int64_t num_tokens() const { return token_ids.shape[0]; }
  int64_t num_sequences() const { return context_lengths.shape[0]; }
};

/// One layer's share of the paged KV cache on one rank. N = blocks, H = KV heads of the rank, P = tokens per block
/// (block size), D = head size.
struct KvCacheView {
  TensorView keys;    // [N, H, P, D]
  TensorView values;  // [N, H, P, D]

  int64_t num_blocks() const { return keys.shape[0]; }
  int64_t num_kv_heads() const { return keys.shape[1]; }
  int64_t block_size() const { return keys.shape[2]; }
  int64_t head_size() const { return keys.shape[3]; }
};

}  // namespace inflight
