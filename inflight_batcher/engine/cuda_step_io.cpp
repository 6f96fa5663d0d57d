#include "inflight_batcher/engine/cuda_step_io.h"

#include <algorithm>
#include <bit>
#include <iterator>

namespace inflight {

namespace {

using cuda::check_cuda;

constexpr size_t kAlignment = 64;  // words

size_t aligned(size_t words) { return (words + kAlignment - 1) / kAlignment * kAlignment; }

/// The bits of the nearest bfloat16 number, ties to even; for finite numbers.
uint16_t nearest_bfloat16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

TensorView vector(int32_t* data, int64_t count) { return TensorView(data, DType::kInt32, {count}); }

}  // namespace

CudaStepIo::CudaStepIo(const CudaStepLimits& limits, cuda::CudaContext& context)
    : limits_(limits), context_(context), packer_(limits), history_stride_(limits.sequence_length + 1) {
  allocate_arrays();
  const size_t packed_bytes = limits.packed_words() * sizeof(int32_t);
  for (Buffer& buffer : buffers_) {
    buffer.packed = PinnedMemory(packed_bytes);
    buffer.staging = cuda::DeviceMemory(packed_bytes);
  }
  place_results();
}

void CudaStepIo::place_results() {
  const auto rows = static_cast<size_t>(limits_.sampled_rows()), candidates = static_cast<size_t>(limits_.candidates());
  answers_ = PinnedMemory(4 * (rows + candidates) * sizeof(int32_t));
  auto* place = reinterpret_cast<int32_t*>(answers_.data());
  const auto take = [&](cuda::ResultBuffers& results, size_t count) {
    for (int i = 0; i < 2; ++i) {
      results.tokens[i] = place;
      results.log_probs[i] = reinterpret_cast<float*>(place + count);
      place += 2 * count;
    }
  };
  take(results_, rows);
  take(candidates_, candidates);
}

void CudaStepIo::allocate_arrays() {
  const auto tokens = static_cast<size_t>(limits_.num_tokens), batch = static_cast<size_t>(limits_.batch_size);
  const auto rows = static_cast<size_t>(limits_.sampled_rows());
  constexpr size_t kRowWords = sizeof(cuda::GpuSamplingRow) / sizeof(int32_t);
  constexpr size_t kCandidateRowWords = sizeof(cuda::GpuCandidateRow) / sizeof(int32_t);
  const auto candidates = static_cast<size_t>(limits_.candidates());
  const std::pair<int32_t**, size_t> arrays[] = {{&token_ids_, tokens},
                                                 {&positions_, tokens},
                                                 {&token_sequences_, tokens},
                                                 {&query_offsets_, batch + 1},
                                                 {&context_lengths_, batch},
                                                 {&block_tables_, batch * limits_.table_width},
                                                 {&logits_rows_, tokens},
                                                 {&sampling_, rows * kRowWords},
                                                 {&candidate_rows_, candidates > 0 ? batch * kCandidateRowWords : 0},
                                                 {&candidate_tokens_, candidates},
                                                 {&candidate_log_probs_, candidates},
                                                 {&lists_, CudaStepLimits::kListWords},
                                                 {&buffer_, 1}};
  size_t words = 0;
  for (const auto& [array, count] : arrays) words += aligned(count);
  memory_ = cuda::DeviceMemory(words * sizeof(int32_t));
  history_ = cuda::DeviceMemory(batch * history_stride_ * sizeof(int32_t));
  check_cuda(cudaMemsetAsync(memory_.data(), 0, memory_.bytes(), context_.stream()), "the steps' arrays");
  check_cuda(cudaMemsetAsync(history_.data(), 0, history_.bytes(), context_.stream()), "the history");
  auto* place = memory_.as<int32_t>();
  for (const auto& [array, count] : arrays) {
    *array = place;
    place += aligned(count);
  }
}

PackedStep CudaStepIo::send(const Step& step, int padded) {
  Buffer& buffer = buffers_[next_];
  const PackedStep packed = packer_.pack(step, padded, next_, reinterpret_cast<int32_t*>(buffer.packed.data()));
  // Beside the kernels of the step before: what they read is not touched until the unpacking below.
  check_cuda(cudaMemcpyAsync(buffer.staging.data(), buffer.packed.data(), packed.words * sizeof(int32_t),
                             cudaMemcpyHostToDevice, upload_stream_),
             "the upload of a step");
  buffer.sent.record(upload_stream_);
  check_cuda(cudaStreamWaitEvent(context_.stream(), buffer.sent), "the upload of a step");
  fill_histories(step);
  if (packed.long_lists) send_long_lists();
  if (!step.virtual_tokens.empty()) send_virtual_rows(step);
  cuda::unpack_step(unpacking(packed, buffer.staging.as<int32_t>()), context_);
  next_ ^= 1;
  return packed;
}

// Rare, so plain copies do: the host's memory is free again when such a copy returns.
void CudaStepIo::fill_histories(const Step& step) {
  for (const HistoryFill& fill : step.histories) {
    check(static_cast<int>(fill.tokens.size()) <= history_stride_, ErrorCode::kInternal, "a history of ",
          fill.tokens.size(), " tokens exceeds ", history_stride_);
    check_cuda(cudaMemcpyAsync(history_.as<int32_t>() + static_cast<int64_t>(fill.slot) * history_stride_,
                               fill.tokens.data(), fill.tokens.size_bytes(), cudaMemcpyHostToDevice, context_.stream()),
               "the history of a sequence");
  }
}

// The host's memory is free again when it returns.
void CudaStepIo::upload(cuda::DeviceMemory& memory, const void* data, size_t bytes, const char* what) {
  if (bytes > memory.bytes()) {
    context_.synchronize();  // a step under way may read the old one
    memory = cuda::DeviceMemory(2 * bytes);
  }
  if (bytes > 0)
    check_cuda(cudaMemcpyAsync(memory.data(), data, bytes, cudaMemcpyHostToDevice, context_.stream()), what);
}

void CudaStepIo::send_long_lists() {
  upload(long_lists_, packer_.lists().data(), packer_.lists().size() * sizeof(int32_t), "word lists");
  upload(biases_, packer_.biases().data(), packer_.biases().size() * sizeof(float), "biases");
}

// Only in steps that are no graph's.
void CudaStepIo::send_virtual_rows(const Step& step) {
  virtual_bits_.clear();
  for (const float* row : step.virtual_rows)
    std::transform(row, row + limits_.hidden_size, std::back_inserter(virtual_bits_), nearest_bfloat16);
  upload(virtual_tokens_, step.virtual_tokens.data(), step.virtual_tokens.size() * sizeof(int32_t), "virtual tokens");
  upload(virtual_rows_, virtual_bits_.data(), virtual_bits_.size() * sizeof(uint16_t), "embeddings of virtual tokens");
}

cuda::StepUnpacking CudaStepIo::unpacking(const PackedStep& packed, const int32_t* staging) const {
  const auto copy = [&](const PackedRange& range, int32_t* to) {
    return cuda::WordCopy{staging + range.begin, to, range.count};
  };
  cuda::StepUnpacking out;
  out.token_ids = staging + packed.token_ids.begin;
  out.positions = staging + packed.positions.begin;
  out.token_sequences = staging + packed.token_sequences.begin;
  out.slots = staging + packed.slots.begin;
  out.block_tables = staging + packed.block_tables.begin;
  out.num_tokens = packed.num_tokens;
  out.table_rows = packed.table_rows;
  out.table_width = packed.table_width;
  out.token_ids_out = token_ids_;
  out.block_tables_out = block_tables_;
  out.history = history_.as<int32_t>();
  out.table_stride = limits_.table_width;
  out.history_stride = history_stride_;
  out.copies = {copy(packed.positions, positions_),
                copy(packed.token_sequences, token_sequences_),
                copy(packed.query_offsets, query_offsets_),
                copy(packed.context_lengths, context_lengths_),
                copy(packed.logits_rows, logits_rows_),
                copy(packed.sampling, sampling_),
                copy(packed.candidate_rows, candidate_rows_),
                copy(packed.lists, lists_),
                copy(packed.buffer, buffer_)};
  return out;
}

BatchView CudaStepIo::view(int num_tokens, int num_sequences, int num_rows) const {
  BatchView batch;
  batch.token_ids = vector(token_ids_, num_tokens);
  batch.positions = vector(positions_, num_tokens);
  batch.token_sequences = vector(token_sequences_, num_tokens);
  batch.query_offsets = vector(query_offsets_, num_sequences + 1);
  batch.context_lengths = vector(context_lengths_, num_sequences);
  batch.block_tables = TensorView(block_tables_, DType::kInt32, {num_sequences, limits_.table_width});
  batch.logits_rows = vector(logits_rows_, num_rows);
  batch.max_query_length = 1;
  batch.max_context_length = limits_.sequence_length;
  batch.num_generation = num_sequences;
  return batch;
}

BatchView CudaStepIo::generation_view(int num_sequences) const {
  BatchView batch = view(num_sequences, num_sequences, num_sequences);
  batch.logits_rows_are_all_tokens = true;
  return batch;
}

BatchView CudaStepIo::view(const PackedStep& packed, const Step& step) const {
  BatchView batch = view(packed.num_tokens, packed.num_sequences, packed.logits_rows.count);
  batch.max_query_length = step.max_query_length;
  batch.max_context_length = step.max_context_length;
  batch.num_generation = step.num_generation;
  const auto rows = static_cast<int64_t>(step.virtual_tokens.size());
  if (rows == 0) return batch;
  batch.virtual_tokens = vector(virtual_tokens_.as<int32_t>(), rows);
  batch.virtual_rows = TensorView(virtual_rows_.data(), DType::kBfloat16, {rows, limits_.hidden_size});
  return batch;
}

void CudaStepIo::sample(const TensorView& logits, int first, int rows, bool long_lists) {
  cuda::GpuSampleArgs args;
  args.logits = TensorView(logits.data, logits.dtype, {rows, logits.shape[1]});
  args.rows = reinterpret_cast<const cuda::GpuSamplingRow*>(sampling_) + first;
  args.words = long_lists ? long_lists_.as<int32_t>() : lists_;
  args.bias = biases_.as<float>();
  args.history = history_.as<int32_t>();
  args.history_stride = history_stride_;
  for (int i = 0; i < 2; ++i) {
    args.results.tokens[i] = results_.tokens[i] + first;
    args.results.log_probs[i] = results_.log_probs[i] + first;
  }
  args.buffer = buffer_;
  cuda::sample(args, context_);
}

void CudaStepIo::rank_candidates(const TensorView& logits, int64_t first, const PackedStep& packed) {
  const auto [begin, end] = packer_.beams_between(first, first + logits.shape[0]);
  if (begin == end) return;
  cuda::GpuCandidateArgs args;
  args.logits = logits;
  args.first_row = first;
  args.rows = reinterpret_cast<const cuda::GpuCandidateRow*>(candidate_rows_) + begin;
  args.num_rows = end - begin;
  args.words = packed.long_lists ? long_lists_.as<int32_t>() : lists_;
  args.bias = biases_.as<float>();
  args.history = history_.as<int32_t>();
  args.history_stride = history_stride_;
  args.tokens = candidate_tokens_;
  args.log_probs = reinterpret_cast<float*>(candidate_log_probs_);
  cuda::best_candidates(args, context_);
}

void CudaStepIo::publish_candidates(int count) {
  if (count == 0) return;
  cuda::publish_results(candidate_tokens_, reinterpret_cast<float*>(candidate_log_probs_), count, buffer_, candidates_,
                        context_);
}

void CudaStepIo::mark_end() { buffers_[next_ ^ 1].done.record(context_.stream()); }

bool CudaStepIo::is_done(int buffer) const {
  if (cudaEventQuery(buffers_[buffer].done) != cudaErrorNotReady) return true;
  cudaGetLastError();  // "not ready" would otherwise be taken for the next launch's error
  return false;
}

}  // namespace inflight
