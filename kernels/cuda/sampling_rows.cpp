#include "kernels/cuda/sampling.h"

namespace inflight::cuda {
namespace {

template <typename Value>
void check_value(bool valid, const char* what, Value value, const char* wanted) {
  check(valid, ErrorCode::kInvalidArgument, "sample: ", what, " is ", value, ", wanted ", wanted);
}

void check_row(const SamplingRow& row, int64_t vocabulary) {
  check_value(row.temperature >= 0, "temperature", row.temperature, ">= 0");
  check_value(row.repetition_penalty > 0, "repetition_penalty", row.repetition_penalty, "> 0");
  check_value(row.prompt_length >= 0 && row.prompt_length <= static_cast<int64_t>(row.history.size()), "prompt_length",
              row.prompt_length, "at most the history's length");
  check_value(row.prompt_ignore_length >= 0, "prompt_ignore_length", row.prompt_ignore_length, ">= 0");
  check_value(row.bias.empty() || static_cast<int64_t>(row.bias.size()) == vocabulary, "number of biases",
              row.bias.size(), "the vocabulary's size or none");
  int64_t begin = 0;
  for (const int32_t end : row.bad_word_ends) {
    check_value(end >= begin && end <= static_cast<int64_t>(row.bad_words.size()), "end of a bad word", end,
                "ascending ends within bad_words");
    begin = end;
  }
}

template <typename Value>
GpuRange append(std::span<const Value> values, std::vector<Value>& to) {
  if (values.empty()) return {};
  const GpuRange range{static_cast<int32_t>(to.size()), static_cast<int32_t>(values.size())};
  to.insert(to.end(), values.begin(), values.end());
  return range;
}

}  // namespace

GpuSamplingRow pack_row(const SamplingRow& row, int32_t slot, int64_t vocabulary, std::vector<int32_t>& words,
                        std::vector<float>& bias) {
  check_row(row, vocabulary);
  GpuSamplingRow out;
  out.slot = slot;
  out.history_length = static_cast<int32_t>(row.history.size());
  out.prompt_length = row.prompt_length;
  out.penalised_from = row.penalised_from();
  out.temperature = row.temperature;
  out.top_k = row.top_k;
  out.top_p = row.top_p;
  out.min_p = row.min_p;
  out.repetition_penalty = row.repetition_penalty;
  out.presence_penalty = row.presence_penalty;
  out.frequency_penalty = row.frequency_penalty;
  out.no_repeat_ngram_size = row.no_repeat_ngram_size;
  out.min_tokens = row.min_tokens;
  out.want_log_prob = row.want_log_prob;
  out.end_ids = append(row.end_ids, words);
  out.bad_words = append(row.bad_words, words);
  out.bad_word_ends = append(row.bad_word_ends, words);
  out.stop_token_ids = append(row.stop_token_ids, words);
  out.bias = append(row.bias, bias);
  out.seed = row.seed;
  out.stream = row.stream;
  return out;
}

}  // namespace inflight::cuda
