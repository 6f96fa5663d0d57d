#pragma once

#include <cstdint>
#include <vector>

#include "inflight/ops/sampling.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/step_io.h"

namespace inflight::cuda {

/// Elements [begin, begin + count) of the step's packed words or biases.
struct GpuRange {
  int32_t begin = -1;
  int32_t count = 0;  // 0: none
};

/// A SamplingRow as the device reads it: plain data, copied with the rest of the step. What the rules look at is known
/// to the device alone, in the history, so that a step can be sent before the one before it has sampled.
struct GpuSamplingRow {
  int32_t slot = -1;           // row of the history; -1: padding, nothing is sampled (token 0, log prob 0)
  int32_t history_length = 0;  // prompt and generated tokens known when this row samples
  int32_t prompt_length = 0;
  int32_t penalised_from = 0;  // place of the history from which presence and frequency penalties count
  float temperature = 0.0f;
  int32_t top_k = 0;
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  int32_t no_repeat_ngram_size = 0;
  int32_t min_tokens = 0;
  int32_t want_log_prob = 0;
  GpuRange end_ids;         // of words
  GpuRange bad_words;       // of words
  GpuRange bad_word_ends;   // of words; the ends count from bad_words.begin
  GpuRange stop_token_ids;  // of words
  GpuRange bias;            // of the biases: [V] or none
  uint64_t seed = 0;
  uint64_t stream = 0;
};

/// `row` for `slot`, its lists appended to `words` and `bias`. history_length is the size of row.history; a caller
/// whose host knows fewer tokens than the device will set it anew. Throws Error(kInvalidArgument) as the CPU's sample
/// does.
GpuSamplingRow pack_row(const SamplingRow& row, int32_t slot, int64_t vocabulary, std::vector<int32_t>& words,
                        std::vector<float>& bias);

/// All pointers are of the device; but the results may lie in page-locked host memory.
struct GpuSampleArgs {
  TensorView logits;                     // [L, V] float32, 16-byte aligned; not kept for the caller
  const GpuSamplingRow* rows = nullptr;  // [L]
  const int32_t* words = nullptr;
  const float* bias = nullptr;
  int32_t* history = nullptr;  // [slots, history_stride]: history[slot][0 .. history_length) is read
  int64_t history_stride = 0;
  ResultBuffers results;            // out (rows that did not ask for a log prob get 0)
  const int32_t* buffer = nullptr;  // [1]: which of the results; null: the first
};

/// SampleArgs' meaning on the device: the same tokens for the same logits, rows and seeds as the CPU's, save where the
/// order of a sum decides. Also writes history[slot][history_length] = token. One launch whose shape depends on L and V
/// alone: a captured graph serves any rows. Throws Error: kInvalidArgument (shapes), kUnsupported (V beyond the shared
/// memory of 8 SMs, about 430,000).
void sample(const GpuSampleArgs& args, CudaContext& context);

/// A beam's row of the logits and where its candidates go.
struct GpuCandidateRow {
  GpuSamplingRow row;      // slot -1: none
  int32_t logits_row = 0;  // first_row + its row of [L, V]
  int32_t begin = 0;       // of the candidates of all rows
  int32_t count = 0;       // of its own, at most kMaxCandidates
  int32_t padding = 0;
};

/// All pointers are of the device.
struct GpuCandidateArgs {
  TensorView logits;  // [L, V] float32, 16-byte aligned; left as they are
  int64_t first_row = 0;
  const GpuCandidateRow* rows = nullptr;
  int64_t num_rows = 0;
  const int32_t* words = nullptr;
  const float* bias = nullptr;
  const int32_t* history = nullptr;  // [slots, history_stride], as in GpuSampleArgs
  int64_t history_stride = 0;
  int32_t* tokens = nullptr;   // [candidates] out
  float* log_probs = nullptr;  // [candidates] out
};

/// CandidatesArgs' meaning on the device: the CPU's tokens for the same logits. Throws as sample() does.
void best_candidates(const GpuCandidateArgs& args, CudaContext& context);

}  // namespace inflight::cuda
