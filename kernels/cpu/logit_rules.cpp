#include "kernels/cpu/logit_rules.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace inflight::cpu {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

bool is_token(int32_t token, std::span<const float> logits) {
  return token >= 0 && token < static_cast<int64_t>(logits.size());
}

std::span<const int32_t> generated(const SamplingRow& row) { return row.history.subspan(row.prompt_length); }

bool ends_with(std::span<const int32_t> history, std::span<const int32_t> head) {
  return history.size() >= head.size() && std::equal(head.begin(), head.end(), history.end() - head.size());
}

void add_bias(const SamplingRow& row, std::span<float> logits) {
  if (row.bias.empty()) return;
  for (size_t i = 0; i < logits.size(); ++i) logits[i] += row.bias[i];
}

}  // namespace

void LogitRules::apply(const SamplingRow& row, std::span<float> logits) {
  if (counts_.size() < logits.size()) counts_.resize(logits.size());
  add_bias(row, logits);
  for (float& logit : logits)
    if (logit != logit) logit = kMinusInfinity;
  if (row.repetition_penalty != 1.0f) penalise_seen(row, logits);
  if (row.presence_penalty != 0 || row.frequency_penalty != 0) penalise_counted(row, logits);
  bans_.clear();
  ban_words(row, logits);
  if (row.no_repeat_ngram_size > 0) ban_ngrams(row, logits);
  ban_ends(row, logits);
  restore_best_if_empty(logits);
}

void LogitRules::penalise_seen(const SamplingRow& row, std::span<float> logits) {
  for (const int32_t token : row.history) {
    if (!is_token(token, logits) || counts_[token]++ > 0) continue;
    float& logit = logits[token];
    logit = logit > 0 ? logit / row.repetition_penalty : logit * row.repetition_penalty;
  }
  for (const int32_t token : row.history)
    if (is_token(token, logits)) counts_[token] = 0;
}

void LogitRules::penalise_counted(const SamplingRow& row, std::span<float> logits) {
  const auto counted = row.history.subspan(row.penalised_from());
  for (const int32_t token : counted)
    if (is_token(token, logits)) ++counts_[token];
  for (const int32_t token : counted) {
    if (!is_token(token, logits) || counts_[token] == 0) continue;
    logits[token] -= row.presence_penalty + row.frequency_penalty * static_cast<float>(counts_[token]);
    counts_[token] = 0;
  }
}

void LogitRules::ban(int32_t token, std::span<float> logits) {
  if (!is_token(token, logits)) return;
  bans_.push_back({token, logits[token]});
  logits[token] = kMinusInfinity;
}

void LogitRules::ban_words(const SamplingRow& row, std::span<float> logits) {
  int32_t begin = 0;
  for (const int32_t end : row.bad_word_ends) {
    const auto word = row.bad_words.subspan(begin, end - begin);
    begin = end;
    if (!word.empty() && ends_with(row.history, word.first(word.size() - 1))) ban(word.back(), logits);
  }
}

void LogitRules::ban_ngrams(const SamplingRow& row, std::span<float> logits) {
  const auto head_size = static_cast<size_t>(row.no_repeat_ngram_size) - 1;
  if (row.history.size() <= head_size) return;
  const auto head = row.history.last(head_size);
  for (size_t i = 0; i + head_size < row.history.size(); ++i)
    if (std::equal(head.begin(), head.end(), row.history.begin() + i)) ban(row.history[i + head_size], logits);
}

void LogitRules::ban_ends(const SamplingRow& row, std::span<float> logits) {
  const auto count = static_cast<int64_t>(generated(row).size());
  if (count < row.min_tokens)
    for (const int32_t token : row.end_ids) ban(token, logits);
  // A stop word is part of the answer: it may itself be the last of the tokens that are wanted.
  if (count + 1 < row.min_tokens)
    for (const int32_t token : row.stop_token_ids) ban(token, logits);
}

void LogitRules::restore_best_if_empty(std::span<float> logits) {
  if (bans_.empty()) return;
  if (std::any_of(logits.begin(), logits.end(), [](float logit) { return logit > kMinusInfinity; })) return;
  const auto worse = [](const Ban& a, const Ban& b) {
    return a.logit < b.logit || (a.logit == b.logit && a.token > b.token);
  };
  const Ban best = *std::max_element(bans_.begin(), bans_.end(), worse);
  logits[best.token] = best.logit;
}

}  // namespace inflight::cpu
