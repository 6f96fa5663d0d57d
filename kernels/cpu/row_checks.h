#pragma once

#include <cstdint>

#include "inflight/error.h"
#include "inflight/ops/sampling.h"

namespace inflight::cpu {

/// Throws Error(kInvalidArgument) where a row says what no sampler can do.
inline void check_row(const char* op, const SamplingRow& row, int64_t index, int64_t vocabulary) {
  const auto valid = [&](bool condition, const char* what, auto value, const char* wanted) {
    check(condition, ErrorCode::kInvalidArgument, op, ": row ", index, ": ", what, " is ", value, ", wanted ", wanted);
  };
  valid(row.temperature >= 0, "temperature", row.temperature, ">= 0");
  valid(row.repetition_penalty > 0, "repetition_penalty", row.repetition_penalty, "> 0");
  valid(row.prompt_length >= 0 && row.prompt_length <= static_cast<int64_t>(row.history.size()), "prompt_length",
        row.prompt_length, "at most the history's length");
  valid(row.prompt_ignore_length >= 0, "prompt_ignore_length", row.prompt_ignore_length, ">= 0");
  valid(row.bias.empty() || static_cast<int64_t>(row.bias.size()) == vocabulary, "number of biases", row.bias.size(),
        "the vocabulary's size or none");
  int64_t begin = 0;
  for (const int32_t end : row.bad_word_ends) {
    valid(end >= begin && end <= static_cast<int64_t>(row.bad_words.size()), "end of a bad word", end,
          "ascending ends within bad_words");
    begin = end;
  }
  if (row.draft_logits.empty()) return;
  valid(static_cast<int64_t>(row.draft_logits.size()) == vocabulary, "number of draft logits", row.draft_logits.size(),
        "the vocabulary's size or none");
  valid(row.draft_token >= 0 && row.draft_token < vocabulary, "draft_token", row.draft_token, "a token");
}

}  // namespace inflight::cpu
