#pragma once

#include <array>
#include <cstdint>

#include "kernels/cuda/cuda.h"

/// How a step's description gets from the host into the fixed device arrays that kernels (and captured graphs) read,
/// and how its answers get back.
namespace inflight::cuda {

/// 32-bit words that are copied as they are.
struct WordCopy {
  const int32_t* from = nullptr;
  int32_t* to = nullptr;
  int count = 0;
};

/// A step as it was packed into device memory, and where its parts go. T = tokens, S = sequences, both with padding.
struct StepUnpacking {
  static constexpr int kMaxCopies = 9;
  static constexpr int32_t kPendingToken = -1;  // resolved from the history of the token's slot

  const int32_t* token_ids = nullptr;        // [T]
  const int32_t* positions = nullptr;        // [T]
  const int32_t* token_sequences = nullptr;  // [T]
  const int32_t* slots = nullptr;            // [S], -1: the sequence has no history
  const int32_t* block_tables = nullptr;     // [table_rows, table_width]
  int num_tokens = 0;
  int table_rows = 0;
  int table_width = 0;

  int32_t* token_ids_out = nullptr;     // [T]
  int32_t* block_tables_out = nullptr;  // [>= table_rows, table_stride]
  int32_t* history = nullptr;           // [slots, history_stride]: the tokens of the sequence in each slot, by position
  int table_stride = 0;
  int history_stride = 0;
  std::array<WordCopy, kMaxCopies> copies{};
};

/// Fills the arrays; tokens that the host knows go into the history, pending ones come from there.
void unpack_step(const StepUnpacking& step, CudaContext& context);

/// Where a step's answers go, in host memory that the GPU can write: a number in device memory picks one of two, so
/// that a step's answers lie still while the next step runs.
struct ResultBuffers {
  std::array<int32_t*, 2> tokens{};   // [L] each
  std::array<float*, 2> log_probs{};  // [L] each
};

/// Copies rows [0, count) of answers in device memory to buffer number *buffer. May be captured.
void publish_results(const int32_t* tokens, const float* log_probs, int count, const int32_t* buffer,
                     const ResultBuffers& results, CudaContext& context);

}  // namespace inflight::cuda
