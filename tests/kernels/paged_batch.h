#pragma once

#include "tests/kernels/harness.h"

namespace inflight::test {

struct Chunk {
  int past;  // tokens of the sequence already in the cache
  int count;
};

struct CacheShape {
  int kv_heads, block_size, head_size;
  DType dtype = DType::kFloat32;
};

/// One step over a paged cache whose blocks are dealt out in random order; everything not written is NaN.
class PagedBatch {
 public:
  PagedBatch(const std::vector<Chunk>& chunks, const CacheShape& shape, Random& random)
      : sequences_(static_cast<int>(chunks.size())),
        width_(table_width(chunks, shape.block_size)),
        keys_(shape.dtype, {sequences_ * width_ + 1, shape.kv_heads, shape.block_size, shape.head_size}),
        values_(keys_),
        block_tables_(DType::kInt32, {sequences_, width_}) {
    const std::vector<int32_t> blocks = random.permutation(sequences_ * width_ + 1);
    for (int i = 0; i < sequences_ * width_; ++i) block_tables_.set(i, blocks[i]);
    std::vector<int32_t> positions, token_sequences, offsets = {0}, lengths;
    for (int s = 0; s < sequences_; ++s) {
      for (int i = 0; i < chunks[s].count; ++i) {
        positions.push_back(chunks[s].past + i);
        token_sequences.push_back(s);
      }
      offsets.push_back(static_cast<int32_t>(positions.size()));
      lengths.push_back(chunks[s].past + chunks[s].count);
      max_length_ = std::max(max_length_, lengths.back());
    }
    tensors_ = {Tensor::ints(positions), Tensor::ints(token_sequences), Tensor::ints(offsets), Tensor::ints(lengths)};
  }

  BatchView view() const {
    BatchView batch;
    batch.token_ids = tensors_[0];
    batch.positions = tensors_[0];
    batch.token_sequences = tensors_[1];
    batch.query_offsets = tensors_[2];
    batch.context_lengths = tensors_[3];
    batch.block_tables = block_tables_;
    batch.max_query_length = batch.max_context_length = max_length_;
    return batch;
  }
  KvCacheView cache() const { return {keys_, values_}; }

  int num_tokens() const { return static_cast<int>(tensors_[0].size()); }
  int position(int token) const { return static_cast<int>(tensors_[0][token]); }
  int sequence(int token) const { return static_cast<int>(tensors_[1][token]); }

  /// Index of an element in the pools.
  int64_t at(int sequence, int position, int head, int element = 0) const {
    const auto& shape = keys_.view().shape;
    const auto block = static_cast<int64_t>(block_tables_[sequence * width_ + position / shape[2]]);
    return ((block * shape[1] + head) * shape[2] + position % shape[2]) * shape[3] + element;
  }
  Tensor& keys() { return keys_; }
  Tensor& values() { return values_; }
  Tensor& block_tables() { return block_tables_; }
  const Tensor& keys() const { return keys_; }
  const Tensor& values() const { return values_; }
  const Tensor& block_tables() const { return block_tables_; }

 private:
  static int table_width(const std::vector<Chunk>& chunks, int block_size) {
    int width = 1;
    for (const Chunk& chunk : chunks) width = std::max(width, (chunk.past + chunk.count + block_size - 1) / block_size);
    return width;
  }

  int sequences_, width_, max_length_ = 0;
  Tensor keys_, values_, block_tables_;
  std::vector<Tensor> tensors_;  // positions, token_sequences, query_offsets, context_lengths
};

}  // namespace inflight::test
