#pragma once

#include "kernels/cuda/sampling_row.cuh"

/// Bias, penalties and bans on a row's logits in shared memory: what kernels/cpu/logit_rules.cpp does, each block for
/// the tokens of its slice. All threads of a block call together; the caller synchronizes the block before and after.
namespace inflight::cuda::sampling {

struct RuleInputs {
  const int32_t* words;
  const int32_t* history;  // of the row's slot
};

__device__ __forceinline__ int generated(const GpuSamplingRow& row) { return row.history_length - row.prompt_length; }
__device__ __forceinline__ bool penalises_seen(const GpuSamplingRow& row) { return row.repetition_penalty != 1.0f; }
__device__ __forceinline__ bool penalises(const GpuSamplingRow& row) {
  return penalises_seen(row) || row.presence_penalty != 0 || row.frequency_penalty != 0;
}
__device__ __forceinline__ bool bans(const GpuSamplingRow& row) {
  return row.bad_word_ends.count > 0 || row.no_repeat_ngram_size > 0 || generated(row) < row.min_tokens;
}

__device__ inline float penalised(const GpuSamplingRow& row, float logit, uint32_t counted) {
  if (penalises_seen(row)) logit = logit > 0 ? logit / row.repetition_penalty : logit * row.repetition_penalty;
  if (counted > 0) logit -= __fmaf_rn(row.frequency_penalty, static_cast<float>(counted), row.presence_penalty);
  return tidied(logit);
}

/// Counts the history by windows of the slice, so that the scratch stays small however long the history is.
static __device__ __noinline__ void penalise(RuleInputs inputs, Slice slice) {
  const GpuSamplingRow& row = shared().row;
  uint32_t (&counts)[kCountWindow] = shared().counts;
  constexpr uint32_t kSeen = 1u << 31;
  const int counted_from = row.penalised_from, length = row.history_length;
  const int first = penalises_seen(row) ? 0 : counted_from;
  for (int base = 0; base < slice.size(); base += kCountWindow) {
    for (int i = threadIdx.x; i < kCountWindow; i += kThreads) counts[i] = 0;
    __syncthreads();
#pragma unroll 2
    for (int i = first + static_cast<int>(threadIdx.x); i < length; i += kThreads) {
      const int token = inputs.history[i];
      const int place = slice.place(token) - base;
      if (!slice.holds(token) || place < 0 || place >= kCountWindow) continue;
      atomicOr(&counts[place], kSeen);
      if (i >= counted_from) atomicAdd(&counts[place], 1);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kCountWindow; i += kThreads)
      if (counts[i] != 0) slice.logit(base + i) = penalised(row, slice.logit(base + i), counts[i] & ~kSeen);
    __syncthreads();
  }
}

__device__ __forceinline__ void ban(int token, const Slice& slice) {
  if (slice.holds(token)) slice.logit(slice.place(token)) = minus_infinity();
}

/// Whether history [0, length) ends with `size` tokens of `head`.
__device__ inline bool ends_with(const int32_t* history, int length, const int32_t* head, int size) {
  if (size > length) return false;
  for (int i = 0; i < size; ++i)
    if (history[length - size + i] != head[i]) return false;
  return true;
}

__device__ inline void ban_words(const RuleInputs& inputs, const Slice& slice) {
  const GpuSamplingRow& row = shared().row;
  const int32_t* ends = inputs.words + row.bad_word_ends.begin;
  for (int i = threadIdx.x; i < row.bad_word_ends.count; i += kThreads) {
    const int begin = i > 0 ? ends[i - 1] : 0, size = ends[i] - begin;
    if (size == 0) continue;
    const int32_t* word = inputs.words + row.bad_words.begin + begin;
    if (slice.holds(word[size - 1]) && ends_with(inputs.history, row.history_length, word, size - 1))
      ban(word[size - 1], slice);
  }
}

__device__ inline void ban_ngrams(const RuleInputs& inputs, const Slice& slice) {
  const int length = shared().row.history_length, head = shared().row.no_repeat_ngram_size - 1;
  for (int i = static_cast<int>(threadIdx.x) + head; i < length; i += kThreads)
    if (slice.holds(inputs.history[i]) && ends_with(inputs.history, length, inputs.history + i - head, head))
      ban(inputs.history[i], slice);
}

__device__ inline void ban_all(const RuleInputs& inputs, const GpuRange& tokens, const Slice& slice) {
  for (int i = threadIdx.x; i < tokens.count; i += kThreads) ban(inputs.words[tokens.begin + i], slice);
}

static __device__ __noinline__ void apply_bans(RuleInputs inputs, Slice slice) {
  const GpuSamplingRow& row = shared().row;
  if (row.bad_word_ends.count > 0) ban_words(inputs, slice);
  if (row.no_repeat_ngram_size > 0) ban_ngrams(inputs, slice);
  if (generated(row) < row.min_tokens) ban_all(inputs, row.end_ids, slice);
  // A stop word is part of the answer: it may itself be the last of the tokens that are wanted.
  if (generated(row) + 1 < row.min_tokens) ban_all(inputs, row.stop_token_ids, slice);
}

}  // namespace inflight::cuda::sampling
