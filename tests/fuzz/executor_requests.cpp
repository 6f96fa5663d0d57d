#include "tests/fuzz/executor_requests.h"

#include "tests/batcher/tiny_engine.h"

namespace inflight::fuzz {

namespace {

using testing::TinyNetwork;

TokenId token(Dice& dice) {
  return static_cast<TokenId>(dice.chance(0.99) ? dice.below(TinyNetwork::kVocabulary) : dice.integer());
}

std::vector<std::vector<TokenId>> words(Dice& dice) {
  std::vector<std::vector<TokenId>> list(static_cast<size_t>(dice.below(4)));
  for (auto& word : list) {
    word.resize(static_cast<size_t>(dice.between(dice.chance(0.98) ? 1 : 0, 3)));
    for (TokenId& part : word) part = token(dice);
  }
  return list;
}

/// Plain with a few wild values: of many, one would nearly always be refused.
SamplingConfig sampling(Dice& dice) {
  SamplingConfig config;
  if (dice.chance(0.5)) {
    config.top_k = static_cast<int>(dice.below(30));
    config.top_p = static_cast<float>(dice.below(11)) / 10;
    config.temperature = static_cast<float>(dice.below(30)) / 10;
    config.seed = dice.bits()();
  }
  if (dice.chance(0.3)) config.repetition_penalty = static_cast<float>(dice.chance(0.7) ? 1.3 : dice.real());
  if (dice.chance(0.3)) config.presence_penalty = static_cast<float>(dice.real());
  if (dice.chance(0.2)) config.frequency_penalty = static_cast<float>(dice.real());
  if (dice.chance(0.1)) config.prompt_ignore_length = static_cast<int>(dice.chance(0.8) ? 5 : dice.integer());
  if (dice.chance(0.1)) config.temperature = static_cast<float>(dice.real());
  if (dice.chance(0.1)) config.min_p = static_cast<float>(dice.real());
  if (dice.chance(0.1)) config.top_p = static_cast<float>(dice.real());
  if (dice.chance(0.1)) config.top_k = static_cast<int>(dice.integer());
  if (dice.chance(0.2)) config.no_repeat_ngram_size = static_cast<int>(dice.chance(0.8) ? 3 : dice.integer());
  if (dice.chance(0.2)) config.min_tokens = static_cast<int>(dice.chance(0.8) ? 5 : dice.integer());
  if (dice.chance(0.2)) config.num_return_sequences = static_cast<int>(dice.chance(0.9) ? 3 : dice.integer());
  return config;
}

OutputConfig output(Dice& dice) {
  OutputConfig config;
  config.streaming = dice.chance(0.5);
  config.exclude_input = dice.chance(0.8);
  config.log_probs = dice.chance(0.3);
  config.context_logits = dice.chance(0.1);
  config.generation_logits = dice.chance(0.1);
  config.perf_metrics = dice.chance(0.3);
  config.prefix_tokens = static_cast<int>(dice.chance(0.95) ? dice.below(5) : dice.integer());
  if (dice.chance(0.02)) config.additional_outputs = {dice.bytes(5)};
  return config;
}

/// Half of them begin alike, so that there is something to reuse.
std::vector<TokenId> prompt(Dice& dice) {
  const bool alike = dice.chance(0.5);
  std::vector<TokenId> ids(static_cast<size_t>(dice.chance(0.97) ? dice.between(1, 40) : dice.below(400)));
  for (size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<TokenId>(alike ? i * 7 % TinyNetwork::kVocabulary : dice.below(TinyNetwork::kVocabulary));
  if (dice.chance(0.03) && !ids.empty()) ids[0] = static_cast<TokenId>(dice.integer());
  return ids;
}

void add_beams(Dice& dice, SamplingConfig& config) {
  config.beam_width = static_cast<int>(dice.chance(0.95) ? dice.between(2, kMostBeams) : dice.integer());
  if (dice.chance(0.9)) config.num_return_sequences = 1;
  config.early_stopping = static_cast<int>(dice.chance(0.98) ? dice.below(3) : dice.integer());
  if (dice.chance(0.5))
    config.length_penalty = static_cast<float>(dice.chance(0.9) ? dice.between(-2, 2) : dice.real());
  if (dice.chance(0.3)) config.beam_search_diversity_rate = static_cast<float>(dice.chance(0.8) ? 0.5 : dice.real());
}

void add_drafts(Dice& dice, Request& it) {
  it.draft_tokens.resize(static_cast<size_t>(dice.chance(0.9) ? dice.between(1, 6) : dice.below(60)));
  for (TokenId& draft : it.draft_tokens) draft = token(dice);
  it.stop_after_drafts = dice.chance(0.3);
  if (dice.chance(0.5)) return;
  it.draft_logits.resize(it.draft_tokens.size() * TinyNetwork::kVocabulary + (dice.chance(0.05) ? 1 : 0));
  for (float& logit : it.draft_logits) logit = static_cast<float>(dice.chance(0.99) ? dice.below(9) - 4 : dice.real());
  if (dice.chance(0.3)) it.draft_acceptance_threshold = static_cast<float>(dice.chance(0.8) ? 0.3 : dice.real());
}

void add_virtual_tokens(Dice& dice, Request& it) {
  auto table = std::make_shared<PromptTable>();
  table->rows = static_cast<int>(dice.between(0, kVirtualTokens));
  table->width = dice.chance(0.97) ? TinyNetwork::kWidth : static_cast<int>(dice.below(40));
  table->values.resize(static_cast<size_t>(table->rows * table->width));
  for (float& value : table->values) value = static_cast<float>(dice.chance(0.99) ? dice.below(5) - 2 : dice.real());
  for (TokenId& id : it.input_ids)
    if (dice.chance(0.2)) id = TinyNetwork::kVocabulary + static_cast<TokenId>(dice.below(table->rows + 1));
  if (table->rows > 0 && dice.chance(0.9))
    for (TokenId& id : it.input_ids) id = std::min(id, TinyNetwork::kVocabulary + table->rows - 1);
  it.prompt_tuning.table = std::move(table);
  if (dice.chance(0.3)) return;
  it.prompt_tuning.extra_ids.resize(it.input_ids.size() + (dice.chance(0.03) ? 1 : 0));
  for (uint64_t& id : it.prompt_tuning.extra_ids) id = static_cast<uint64_t>(dice.below(3));
}

Retention retention(Dice& dice) {
  Retention it;
  it.priority = static_cast<int>(dice.chance(0.95) ? dice.between(0, 100) : dice.integer());
  if (dice.chance(0.3)) it.duration_ms = dice.chance(0.9) ? dice.below(20) : dice.integer();
  return it;
}

void add_retention(Dice& dice, RetentionConfig& config) {
  for (int64_t count = dice.below(3); count > 0; --count) {
    RetentionRange range;
    range.begin = static_cast<int>(dice.chance(0.95) ? dice.below(30) : dice.integer());
    if (dice.chance(0.6)) range.end = static_cast<int>(dice.chance(0.95) ? range.begin / 2 + 9 : dice.integer());
    range.retention = retention(dice);
    config.ranges.push_back(range);
  }
  config.decode = retention(dice);
}

}  // namespace

Request draw_request(Dice& dice) {
  Request it;
  it.input_ids = prompt(dice);
  it.max_tokens = static_cast<int>(dice.chance(0.95) ? dice.between(1, 20) : dice.integer());
  it.sampling = sampling(dice);
  it.output = output(dice);
  if (dice.chance(0.3)) it.end_id = token(dice);
  if (dice.chance(0.3)) it.stop_words = words(dice);
  if (dice.chance(0.3)) it.bad_words = words(dice);
  if (dice.chance(0.1)) {
    it.embedding_bias.resize(static_cast<size_t>(dice.chance(0.9) ? TinyNetwork::kVocabulary : dice.below(30)));
    for (float& bias : it.embedding_bias) bias = static_cast<float>(dice.chance(0.9) ? dice.below(5) : dice.real());
  }
  if (dice.chance(0.2)) it.priority = static_cast<float>(dice.chance(0.8) ? dice.below(3) * 0.5 : dice.real());
  if (dice.chance(0.1)) it.timeout = std::chrono::microseconds(dice.chance(0.8) ? dice.below(2000) : dice.integer());
  if (dice.chance(0.1)) it.continued_tokens = static_cast<int>(dice.chance(0.9) ? dice.below(4) : dice.integer());
  if (dice.chance(0.2)) add_beams(dice, it.sampling);
  if (dice.chance(0.2)) add_drafts(dice, it);
  if (dice.chance(0.1)) add_virtual_tokens(dice, it);
  if (dice.chance(0.1)) add_retention(dice, it.retention);
  return it;
}

}  // namespace inflight::fuzz
