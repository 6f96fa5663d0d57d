#pragma once

#include <array>
#include <memory>

#include "inflight/batch.h"
#include "inflight_batcher/engine/cuda_memory.h"
#include "inflight_batcher/engine/cuda_step_packer.h"
#include "kernels/cuda/step_io.h"

namespace inflight {

/// The way of steps onto the GPU and of their answers back. Two steps may be under way: each has its own page-locked
/// buffers, and its upload runs beside the other one's kernels. The arrays that kernels read are fixed, so that
/// captured graphs can be used again; nothing is allocated while steps run, save for biases, virtual tokens and very
/// long word lists.
class CudaStepIo {
 public:
  CudaStepIo(const CudaStepLimits& limits, cuda::CudaContext& context);

  /// Packs, sends and unpacks the step for the kernels that follow. `padded`: see CudaStepPacker.
  PackedStep send(const Step& step, int padded);

  /// The arrays as a batch of so many generating sequences, each with its row of logits: what graphs are captured for.
  BatchView generation_view(int num_sequences) const;
  BatchView view(const PackedStep& packed, const Step& step) const;

  /// Turns the first `rows` rows of `logits` into the tokens of the step's sampled rows from `first` on, where the host
  /// will find them.
  void sample(const TensorView& logits, int first, int rows, bool long_lists);

  /// Ranks what the step's beams may go on with whose logits are among these: rows from `first` on of the step's.
  void rank_candidates(const TensorView& logits, int64_t first, const PackedStep& packed);

  /// Writes the candidates, `count` of all beams, where the host will find them.
  void publish_candidates(int count);

  /// Marks the end of the step that was sent last.
  void mark_end();
  int next_buffer() const { return next_; }
  /// After a step that failed on its way, once the GPU is idle: its buffer is free again.
  void rewind(int buffer) { next_ = buffer; }

  bool is_done(int buffer) const;
  void wait(int buffer) { buffers_[buffer].done.wait(); }
  const int32_t* tokens(int buffer) const { return results_.tokens[buffer]; }
  const float* log_probs(int buffer) const { return results_.log_probs[buffer]; }
  const int32_t* candidate_tokens(int buffer) const { return candidates_.tokens[buffer]; }
  const float* candidate_log_probs(int buffer) const { return candidates_.log_probs[buffer]; }

  size_t device_bytes() const { return memory_.bytes() + history_.bytes() + 2 * buffers_[0].staging.bytes(); }

 private:
  struct Buffer {
    PinnedMemory packed;
    cuda::DeviceMemory staging;
    CudaEvent sent, done;
  };

  BatchView view(int num_tokens, int num_sequences, int num_rows) const;
  void allocate_arrays();
  void place_results();
  void fill_histories(const Step& step);
  void send_long_lists();
  void send_virtual_rows(const Step& step);
  void upload(cuda::DeviceMemory& memory, const void* data, size_t bytes, const char* what);
  cuda::StepUnpacking unpacking(const PackedStep& packed, const int32_t* staging) const;

  CudaStepLimits limits_;
  cuda::CudaContext& context_;
  CudaStepPacker packer_;
  CudaStream upload_stream_;
  std::array<Buffer, 2> buffers_;
  int next_ = 0;

  cuda::DeviceMemory memory_, history_;
  int32_t *token_ids_ = nullptr, *positions_ = nullptr, *token_sequences_ = nullptr, *query_offsets_ = nullptr,
          *context_lengths_ = nullptr, *block_tables_ = nullptr, *logits_rows_ = nullptr, *sampling_ = nullptr,
          *candidate_rows_ = nullptr, *lists_ = nullptr, *buffer_ = nullptr, *candidate_tokens_ = nullptr,
          *candidate_log_probs_ = nullptr;
  int history_stride_ = 0;
  cuda::DeviceMemory long_lists_, biases_;
  cuda::DeviceMemory virtual_tokens_, virtual_rows_;
  std::vector<uint16_t> virtual_bits_;  // the rows in bfloat16
  PinnedMemory answers_;
  cuda::ResultBuffers results_, candidates_;
};

}  // namespace inflight
