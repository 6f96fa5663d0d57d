#include "inflight_batcher/executor/request_checks.h"

#include <algorithm>
#include <cmath>

#include "inflight_batcher/api/limits.h"
#include "inflight_batcher/executor/kv_requests.h"
#include "inflight_batcher/executor/prompt_tuning.h"

namespace inflight {

namespace {

template <typename... Parts>
void require(bool condition, const Parts&... parts) {
  check(condition, ErrorCode::kInvalidArgument, parts...);
}

void check_range(const char* name, double value, double low, double high) {
  require(std::isfinite(value) && value >= low && value <= high, name, " is ", value, ", wanted ", low, " to ", high);
}

void check_token(const char* what, TokenId token, int vocabulary) {
  require(token >= 0 && token < vocabulary, what, " ", token, " is outside the vocabulary of ", vocabulary, " tokens");
}

void check_words(const char* what, const std::vector<std::vector<TokenId>>& words, int vocabulary) {
  for (const auto& word : words) {
    require(!word.empty(), what, " contains an empty word");
    for (TokenId token : word) check_token(what, token, vocabulary);
  }
}

void check_beams(const SamplingConfig& sampling, int max_beam_width) {
  constexpr double kMaxExponent = 50;  // to which a length stays a number
  require(sampling.beam_width >= 1 && sampling.beam_width <= max_beam_width, "beam_width is ", sampling.beam_width,
          ", wanted 1 to max_beam_width ", max_beam_width);
  require(sampling.beam_width == 1 || sampling.num_return_sequences == 1, "num_return_sequences is ",
          sampling.num_return_sequences, " with beam_width ", sampling.beam_width,
          ", wanted 1: a beam search returns all its beams");
  check_range("length_penalty", sampling.length_penalty, -kMaxExponent, kMaxExponent);
  check_range("early_stopping", sampling.early_stopping, 0, 2);
  check_range("beam_search_diversity_rate", sampling.beam_search_diversity_rate, -1e6, 1e6);
}

void check_prompt_tokens(const Request& request, int vocabulary) {
  const int virtual_tokens = virtual_tokens_of(request.prompt_tuning);
  if (virtual_tokens == 0) {
    for (TokenId token : request.input_ids) check_token("input token", token, vocabulary);
    return;
  }
  for (TokenId token : request.input_ids)
    require(token >= 0 && token - vocabulary < virtual_tokens, "input token ", token, " is outside the vocabulary of ",
            vocabulary, " tokens and the ", virtual_tokens, " rows of prompt_embedding_table behind it");
}

void check_sampling(const SamplingConfig& sampling) {
  constexpr double kMaxPenalty = 1e6;
  check_range("num_return_sequences", sampling.num_return_sequences, 1, kMaxReturnSequences);
  check_range("temperature", sampling.temperature, 0.0, kMaxPenalty);
  check_range("top_k", sampling.top_k, 0, INT32_MAX);
  require(!std::isnan(sampling.top_p) && sampling.top_p <= 1.0f, "top_p is ", sampling.top_p, ", wanted at most 1");
  require(sampling.top_p_decay > 0.0f && sampling.top_p_decay <= 1.0f, "top_p_decay is ", sampling.top_p_decay,
          ", wanted more than 0 and at most 1");
  require(sampling.top_p_min > 0.0f && sampling.top_p_min <= 1.0f, "top_p_min is ", sampling.top_p_min,
          ", wanted more than 0 and at most 1");
  check_range("min_p", sampling.min_p, 0.0, 1.0);
  require(std::isfinite(sampling.repetition_penalty) && sampling.repetition_penalty > 0.0f, "repetition_penalty is ",
          sampling.repetition_penalty, ", wanted more than 0");
  check_range("presence_penalty", sampling.presence_penalty, -kMaxPenalty, kMaxPenalty);
  check_range("frequency_penalty", sampling.frequency_penalty, -kMaxPenalty, kMaxPenalty);
  check_range("prompt_ignore_length", sampling.prompt_ignore_length, 0, INT32_MAX);
  check_range("no_repeat_ngram_size", sampling.no_repeat_ngram_size, 0, INT32_MAX);
  check_range("min_tokens", sampling.min_tokens, 0, INT32_MAX);
}

void check_drafts(const Request& request, int vocabulary) {
  const size_t drafts = request.draft_tokens.size();
  for (TokenId token : request.draft_tokens) check_token("draft token", token, vocabulary);
  require(drafts == 0 || request.sampling.beam_width == 1, "draft_tokens with beam_width ", request.sampling.beam_width,
          ", wanted 1");
  require(request.draft_logits.empty() || request.draft_logits.size() == drafts * vocabulary, "draft_logits has ",
          request.draft_logits.size(), " values, wanted ", drafts, " draft tokens x ", vocabulary, " tokens");
  if (!request.draft_acceptance_threshold) return;
  const float threshold = *request.draft_acceptance_threshold;
  require(threshold > 0.0f && threshold <= 1.0f, "draft_acceptance_threshold is ", threshold,
          ", wanted more than 0 and at most 1");
  require(drafts > 0, "draft_acceptance_threshold is ", threshold, " without draft tokens");
}

void check_outputs(const Request& request, const ModelInfo& model, const Plan& plan) {
  if (request.output.additional_outputs.empty()) return;
  check(request.sampling.beam_width == 1, ErrorCode::kUnsupported, "additional outputs need beam_width 1, found ",
        request.sampling.beam_width);
  check(model.tensor_parallel == 1, ErrorCode::kUnsupported,
        "additional outputs need tensor_parallel 1, the engine has ", model.tensor_parallel);
  for (const std::string& name : request.output.additional_outputs) {
    std::string known;
    for (const PlanOutput& output : plan.outputs) known += (known.empty() ? "" : ", ") + output.name;
    require(std::any_of(plan.outputs.begin(), plan.outputs.end(), [&](const PlanOutput& o) { return o.name == name; }),
            "the plan marks no output '", name, "'; it has: ", known.empty() ? "none" : known);
  }
}

void check_logits_bytes(const Request& request, const ModelInfo& model, int64_t limit) {
  int64_t rows = request.output.context_logits ? static_cast<int64_t>(request.input_ids.size()) : 0;
  if (request.output.generation_logits) rows += int64_t{request.max_tokens} * request.sampling.beam_width;
  const int64_t bytes = rows * request.sampling.num_return_sequences * model.vocabulary_size * 4;
  require(bytes <= limit, "the logits asked for take ", bytes, " bytes, wanted at most max_logits_bytes ", limit);
}

}  // namespace

void check_request(Request& request, const ModelInfo& model, const Plan& plan, const ExecutorConfig& config) {
  const auto prompt = static_cast<int64_t>(request.input_ids.size());
  require(prompt >= 1, "the prompt is empty: input_ids has 0 tokens, wanted at least 1");
  require(prompt < model.max_sequence_length, "the prompt has ", prompt, " tokens; this model takes at most ",
          model.max_sequence_length - 1, " (", model.max_sequence_length, " with at least one generated)");
  require(request.max_tokens >= 1, "max_tokens is ", request.max_tokens, ", wanted at least 1");
  request.max_tokens = static_cast<int>(std::min<int64_t>(request.max_tokens, model.max_sequence_length - prompt));
  check_prompt_tuning(request.prompt_tuning, request.input_ids.size(), plan.hidden_size);
  check_prompt_tokens(request, model.vocabulary_size);
  check_words("stop_words", request.stop_words, model.vocabulary_size);
  check_words("bad_words", request.bad_words, model.vocabulary_size);
  require(request.embedding_bias.empty() || static_cast<int>(request.embedding_bias.size()) == model.vocabulary_size,
          "embedding_bias has ", request.embedding_bias.size(), " entries, the vocabulary ", model.vocabulary_size);
  require(
      std::none_of(request.embedding_bias.begin(), request.embedding_bias.end(), [](float x) { return std::isnan(x); }),
      "embedding_bias contains NaN");
  check_range("priority", request.priority, 0.0, 1.0);
  require(request.timeout.count() >= 0, "timeout is ", request.timeout.count(), " microseconds, wanted at least 0");
  require(request.output.prefix_tokens >= 0, "prefix_tokens is ", request.output.prefix_tokens, ", wanted at least 0");
  check_retention(request.retention);
  require(request.continued_tokens >= 0 && request.continued_tokens < prompt, "continued_tokens is ",
          request.continued_tokens, ", wanted 0 to ", prompt - 1, ", fewer than the input tokens");
  check_beams(request.sampling, config.max_beam_width);
  check_sampling(request.sampling);
  check_drafts(request, model.vocabulary_size);
  check_outputs(request, model, plan);
  check_logits_bytes(request, model, config.max_logits_bytes);
}

std::span<const TokenId> continued_tokens_of(const Request& request) {
  return std::span(request.input_ids).last(static_cast<size_t>(request.continued_tokens));
}

void resolve_words(RequestState& state, const Plan& plan) {
  if (state.request.end_id) state.end_ids.push_back(*state.request.end_id);
  // A checkpoint may have several end tokens where a request can name one: naming one of them means them all.
  const auto& known = plan.eos_ids;
  if (state.request.end_id && std::find(known.begin(), known.end(), *state.request.end_id) != known.end())
    state.end_ids.assign(known.begin(), known.end());
  for (const auto& word : state.request.bad_words) {
    state.bad_words.insert(state.bad_words.end(), word.begin(), word.end());
    state.bad_word_ends.push_back(static_cast<int32_t>(state.bad_words.size()));
  }
  for (const auto& word : state.request.stop_words)
    if (word.size() == 1) state.stop_token_ids.push_back(word[0]);
}

SamplingRow sampling_row(const RequestState& state, int sequence_index) {
  const SamplingConfig& config = state.request.sampling;
  SamplingRow row;
  const bool filtered = config.top_k > 0 || config.top_p > 0.0f || config.min_p > 0.0f;
  row.temperature = filtered ? config.temperature : 0.0f;
  row.top_k = config.top_k;
  row.top_p = config.top_p > 0.0f ? config.top_p : 1.0f;
  row.min_p = config.min_p;
  row.repetition_penalty = config.repetition_penalty;
  row.presence_penalty = config.presence_penalty;
  row.frequency_penalty = config.frequency_penalty;
  row.prompt_ignore_length = config.prompt_ignore_length;
  row.no_repeat_ngram_size = config.no_repeat_ngram_size;
  row.min_tokens = config.min_tokens;
  row.end_ids = state.end_ids;
  row.seed = config.seed;
  row.stream = static_cast<uint64_t>(sequence_index);
  row.prompt_length = static_cast<int>(state.request.input_ids.size()) - state.request.continued_tokens;
  row.bias = state.request.embedding_bias;
  row.bad_words = state.bad_words;
  row.bad_word_ends = state.bad_word_ends;
  row.stop_token_ids = state.stop_token_ids;
  row.want_log_prob = state.request.output.log_probs;
  if (config.beam_width > 1) row.temperature = config.temperature;
  for (const TokenId token : continued_tokens_of(state.request)) decay_top_p(row, config, token);
  return row;
}

void decay_top_p(SamplingRow& row, const SamplingConfig& config, TokenId token) {
  if (config.top_p <= 0.0f || config.top_p_decay == 1.0f) return;
  row.top_p = token == config.top_p_reset_id
                  ? config.top_p
                  : std::min(config.top_p, std::max(config.top_p_min, row.top_p * config.top_p_decay));
}

bool ends_in_stop_word(const Request& request, std::span<const TokenId> generated) {
  const std::span<const TokenId> before = continued_tokens_of(request);
  return std::any_of(request.stop_words.begin(), request.stop_words.end(), [&](const std::vector<TokenId>& word) {
    if (word.size() > before.size() + generated.size()) return false;
    const auto fresh = word.rbegin() + static_cast<std::ptrdiff_t>(std::min(word.size(), generated.size()));
    return std::equal(word.rbegin(), fresh, generated.rbegin()) && std::equal(fresh, word.rend(), before.rbegin());
  });
}

}  // namespace inflight
