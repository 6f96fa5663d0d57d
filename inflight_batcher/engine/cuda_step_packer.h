#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "inflight_batcher/engine/step.h"
#include "kernels/cuda/sampling.h"

namespace inflight {

/// The most that a step holds; sizes everything that steps use on the device once.
struct CudaStepLimits {
  int num_tokens = 0;
  int batch_size = 0;       // sequences
  int table_width = 0;      // KV blocks of one sequence
  int sequence_length = 0;  // prompt and generated
  int vocabulary = 0;
  int hidden_size = 0;
  int candidates_per_beam = 0;  // 0: no beams

  int candidates() const { return batch_size * candidates_per_beam; }

  static constexpr int kListWords = 1 << 16;  // of the sampling rows together; longer lists travel apart

  int sampled_rows() const { return num_tokens; }  // drafts have a row each

  size_t packed_words() const;
};

/// A part of the packed step, in 32-bit words from its beginning.
struct PackedRange {
  size_t begin = 0;
  int count = 0;
};

/// Where a step's parts lie in the one block that is sent to the device.
struct PackedStep {
  int num_tokens = 0;  // with padding, as all counts here
  int num_sequences = 0;
  int num_sampled = 0;
  PackedRange token_ids, positions, token_sequences, query_offsets, context_lengths, slots, block_tables, logits_rows,
      sampling, candidate_rows, lists, buffer;
  int num_beams = 0;       // rows whose candidates are wanted
  int num_candidates = 0;  // of all of them
  int table_rows = 0, table_width = 0;
  size_t words = 0;
  bool long_lists = false;  // lists do not fit or there are biases: they are in the packer, not in the block
};

/// Packs steps for the device into one block of words.
class CudaStepPacker {
 public:
  explicit CudaStepPacker(const CudaStepLimits& limits) : limits_(limits) {}

  /// `padded` > 0: the step has one token a sequence, all of them sampled, and is filled up to so many sequences.
  /// `buffer` travels along. Throws Error(kInternal) for a step beyond the limits.
  PackedStep pack(const Step& step, int padded, int buffer, int32_t* out);

  /// Of the step packed last: the beams whose logits are among the step's rows [first, end), as a range of its beams.
  std::pair<int, int> beams_between(int64_t first, int64_t end) const;

  /// Of the step packed last.
  const std::vector<int32_t>& lists() const { return lists_; }
  const std::vector<float>& biases() const { return biases_; }

 private:
  void check_limits(const Step& step, int padded) const;
  void pack_rows(const Step& step, int padded);
  void pack_candidate_row(const SamplingRow& row, const cuda::GpuSamplingRow& packed, int32_t logits_row);

  CudaStepLimits limits_;
  std::vector<cuda::GpuSamplingRow> rows_;
  std::vector<cuda::GpuCandidateRow> candidate_rows_;
  std::vector<int32_t> lists_;
  std::vector<float> biases_;
};

}  // namespace inflight
