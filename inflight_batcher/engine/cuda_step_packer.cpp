#include "inflight_batcher/engine/cuda_step_packer.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "inflight/error.h"

namespace inflight {

namespace {

constexpr size_t kAlignment = 4;  // words: parts begin at 16 bytes
constexpr size_t kRowWords = sizeof(cuda::GpuSamplingRow) / sizeof(int32_t);
constexpr size_t kCandidateRowWords = sizeof(cuda::GpuCandidateRow) / sizeof(int32_t);

size_t aligned(size_t words) { return (words + kAlignment - 1) / kAlignment * kAlignment; }

// Appends parts to a block of words.
class Writer {
 public:
  explicit Writer(int32_t* out) : out_(out) {}

  PackedRange reserve(size_t count) {
    const PackedRange range{used_, static_cast<int>(count)};
    used_ = aligned(used_ + count);
    return range;
  }

  PackedRange copy(const void* words, size_t count) {
    const PackedRange range = reserve(count);
    std::memcpy(out_ + range.begin, words, count * sizeof(int32_t));
    return range;
  }

  /// `values`, then `padding` more from `pad(i)`.
  template <typename Pad>
  PackedRange padded(const std::vector<int32_t>& values, int padding, const Pad& pad) {
    const PackedRange range = reserve(values.size() + padding);
    int32_t* out = std::copy(values.begin(), values.end(), out_ + range.begin);
    for (int i = 0; i < padding; ++i) *out++ = pad(i);
    return range;
  }

  size_t used() const { return used_; }

 private:
  int32_t* out_;
  size_t used_ = 0;
};

}  // namespace

size_t CudaStepLimits::packed_words() const {
  const auto tokens = static_cast<size_t>(num_tokens), batch = static_cast<size_t>(batch_size);
  const size_t beams = candidates_per_beam > 0 ? aligned(batch * kCandidateRowWords) : 0;
  // Token ids, positions, sequences and logits rows; offsets, lengths and slots; tables; rows, those of beams; lists;
  // the buffer.
  return 4 * aligned(tokens) + aligned(batch + 1) + 2 * aligned(batch) + aligned(batch * table_width) +
         aligned(sampled_rows() * kRowWords) + beams + aligned(kListWords) + kAlignment;
}

void CudaStepPacker::check_limits(const Step& step, int padded) const {
  const auto within = [](size_t value, int limit, const char* what) {
    check(value <= static_cast<size_t>(limit), ErrorCode::kInternal, "the step has ", value, " ", what,
          ", the engine was made for ", limit);
  };
  within(step.token_ids.size(), limits_.num_tokens, "tokens");
  within(std::max<size_t>(step.context_lengths.size(), padded), limits_.batch_size, "sequences");
  within(step.sampling.size(), limits_.sampled_rows(), "rows to sample");
  within(step.logits_rows.size(), limits_.num_tokens, "rows of logits");
  within(step.table_width, limits_.table_width, "KV blocks in a table");
  for (const SamplingRow& row : step.sampling)
    within(row.num_candidates, limits_.candidates_per_beam, "candidates of a beam");
  within(step.max_context_length, limits_.sequence_length, "tokens in a sequence");
}

void CudaStepPacker::pack_rows(const Step& step, int padded) {
  rows_.clear();
  candidate_rows_.clear();
  lists_.clear();
  biases_.clear();
  for (size_t i = 0; i < step.sampling.size(); ++i) {
    const int sequence = step.token_sequences[step.logits_rows[i]];
    const SamplingRow& row = step.sampling[i];
    // What is sampled on the host is padding here: it leaves the history as it is.
    const int slot = row.verifies_draft() ? -1 : step.slots.at(sequence);
    rows_.push_back(cuda::pack_row(row, slot, limits_.vocabulary, lists_, biases_));
    rows_.back().history_length = static_cast<int32_t>(row.history.size()) + row.pending;
    if (row.num_candidates > 0) pack_candidate_row(row, std::exchange(rows_.back(), {}), static_cast<int32_t>(i));
  }
  rows_.resize(std::max<size_t>(rows_.size(), padded));  // the default row is padding
}

// The row in its place among those that sample is padding.
void CudaStepPacker::pack_candidate_row(const SamplingRow& row, const cuda::GpuSamplingRow& packed,
                                        int32_t logits_row) {
  cuda::GpuCandidateRow out;
  out.row = packed;
  out.logits_row = logits_row;
  if (!candidate_rows_.empty()) out.begin = candidate_rows_.back().begin + candidate_rows_.back().count;
  out.count = row.num_candidates;
  candidate_rows_.push_back(out);
}

std::pair<int, int> CudaStepPacker::beams_between(int64_t first, int64_t end) const {
  const auto beams_before = [&](int64_t row) {
    const auto is_before = [&](const cuda::GpuCandidateRow& beam) { return beam.logits_row < row; };
    return static_cast<int>(std::partition_point(candidate_rows_.begin(), candidate_rows_.end(), is_before) -
                            candidate_rows_.begin());
  };
  return {beams_before(first), beams_before(end)};
}

PackedStep CudaStepPacker::pack(const Step& step, int padded, int buffer, int32_t* out) {
  check_limits(step, padded);
  pack_rows(step, padded);
  const int sequences = static_cast<int>(step.context_lengths.size());
  const int padding = std::max(0, padded - sequences);
  const int tokens = static_cast<int>(step.token_ids.size());

  PackedStep packed;
  Writer writer(out);
  const auto zero = [](int) { return 0; };
  packed.token_ids = writer.padded(step.token_ids, padding, zero);
  packed.positions = writer.padded(step.positions, padding, zero);
  packed.token_sequences = writer.padded(step.token_sequences, padding, [&](int i) { return sequences + i; });
  packed.query_offsets = writer.padded(step.query_offsets, padding, [&](int i) { return tokens + i + 1; });
  packed.context_lengths = writer.padded(step.context_lengths, padding, zero);
  packed.slots = writer.padded(step.slots, padding, [](int) { return -1; });
  packed.logits_rows = writer.padded(step.logits_rows, padding, [&](int i) { return tokens + i; });
  packed.block_tables = writer.copy(step.block_tables.data(), step.block_tables.size());
  packed.sampling = writer.copy(rows_.data(), rows_.size() * kRowWords);
  packed.num_beams = static_cast<int>(candidate_rows_.size());
  packed.candidate_rows = writer.copy(candidate_rows_.data(), candidate_rows_.size() * kCandidateRowWords);
  if (packed.num_beams > 0) packed.num_candidates = candidate_rows_.back().begin + candidate_rows_.back().count;
  packed.long_lists = !biases_.empty() || lists_.size() > CudaStepLimits::kListWords;
  if (!packed.long_lists) packed.lists = writer.copy(lists_.data(), lists_.size());
  packed.buffer = writer.copy(&buffer, 1);
  packed.words = writer.used();
  packed.num_tokens = tokens + padding;
  packed.num_sequences = sequences + padding;
  packed.num_sampled = static_cast<int>(rows_.size());
  packed.table_rows = sequences;
  packed.table_width = step.table_width;
  return packed;
}

}  // namespace inflight
