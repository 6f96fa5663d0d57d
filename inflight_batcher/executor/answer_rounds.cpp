#include "inflight_batcher/executor/answer_rounds.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "inflight_batcher/executor/request_state.h"

namespace inflight {

namespace {

template <typename... Parts>
void require(bool condition, const Parts&... parts) {
  check(condition, ErrorCode::kInvalidArgument, "num_draft_tokens ", parts...);
}

void check_drafting(const Request& request, const DraftingConfig& config, const ModelInfo& target,
                    const ModelInfo& draft) {
  constexpr char kOneOfThem[] = ", wanted one of them";
  const SamplingConfig& sampling = request.sampling;
  const OutputConfig& output = request.output;
  require(config.num_draft_tokens >= 1, "is ", config.num_draft_tokens, ", wanted 1 or more");
  require(sampling.beam_width == 1, "with beam_width ", sampling.beam_width, ", wanted 1");
  require(sampling.num_return_sequences == 1, "with num_return_sequences ", sampling.num_return_sequences,
          ", wanted 1");
  require(!output.context_logits, "with return_context_logits", kOneOfThem);
  require(request.draft_tokens.empty() && request.draft_logits.empty(), "with ", request.draft_tokens.size(),
          " draft tokens of the request's own", kOneOfThem);
  require(!request.stop_after_drafts, "with stop_after_draft_tokens", kOneOfThem);
  check(output.additional_outputs.empty(), ErrorCode::kUnsupported, "num_draft_tokens with additional outputs",
        kOneOfThem, ": each round would compute all tokens anew");
  check(!config.use_draft_logits || draft.vocabulary_size == target.vocabulary_size, ErrorCode::kInvalidArgument,
        "use_draft_logits with a draft model of ", draft.vocabulary_size, " tokens, wanted the target's ",
        target.vocabulary_size);
}

/// Without chunks, what a later round goes on from must fit a step.
int longest_prompt_of(const ExecutorConfig& config) {
  return config.enable_chunked_context ? std::numeric_limits<int>::max() : config.max_num_tokens;
}

}  // namespace

AnswerRounds::AnswerRounds(Request request, const DraftingConfig& config, const Executor& target, const Executor& draft)
    : request_(std::move(request)),
      config_(config),
      num_prompt_(static_cast<int>(request_.input_ids.size())),
      draft_vocabulary_(draft.model().vocabulary_size),
      target_vocabulary_(target.model().vocabulary_size),
      longest_prompt_(longest_prompt_of(target.config())),
      arrival_ns_(steady_ns()) {
  check_drafting(request_, config, target.model(), draft.model());
  request_.output.streaming = true;
  request_.max_tokens = std::min(request_.max_tokens, target.model().max_sequence_length - num_prompt_);
  if (request_.timeout.count() > 0) deadline_ = deadline_in(request_.timeout);
}

Request AnswerRounds::example() const {
  Request request = request_;
  request.draft_tokens = {0};  // so that what is said of drafts is checked
  return request;
}

int AnswerRounds::drafts_wanted() const {
  const int count = std::min(config_.num_draft_tokens, request_.max_tokens - 1);
  const int next_prompt = static_cast<int>(request_.input_ids.size()) + count + 1;
  return draft_no_more_ || next_prompt > longest_prompt_ ? 0 : count;
}

// At least a microsecond, as none would mean no time-out.
std::chrono::microseconds AnswerRounds::time_left() const {
  if (request_.timeout.count() == 0) return request_.timeout;
  const auto left = deadline_ - std::chrono::steady_clock::now();
  return std::max(std::chrono::duration_cast<std::chrono::microseconds>(left), std::chrono::microseconds(1));
}

// Stop words and virtual tokens are the target's affair.
Request AnswerRounds::draft_request() const {
  Request request = request_;
  request.max_tokens = drafts_wanted();
  request.output = {};
  request.output.generation_logits = config_.use_draft_logits;
  request.stop_words.clear();
  request.prompt_tuning = {};
  request.draft_acceptance_threshold.reset();
  request.timeout = time_left();
  fit_to_draft_vocabulary(request);
  return request;
}

// Models with one tokenizer differ where their vocabularies were padded.
void AnswerRounds::fit_to_draft_vocabulary(Request& request) const {
  if (draft_vocabulary_ == target_vocabulary_) return;
  if (!request.embedding_bias.empty()) request.embedding_bias.resize(static_cast<size_t>(draft_vocabulary_));
  std::erase_if(request.bad_words, [&](const std::vector<TokenId>& word) {
    return std::any_of(word.begin(), word.end(), [&](TokenId token) { return token >= draft_vocabulary_; });
  });
}

void AnswerRounds::take_drafts(Result&& result) {
  if (result.failed) return;
  draft_tokens_ = std::move(result.tokens);
  draft_logits_ = std::move(result.generation_logits);
  if (config_.use_draft_logits) return;
  if (result.finish_reason == FinishReason::kEndId) draft_tokens_.push_back(*request_.end_id);
  const auto foreign = std::find_if(draft_tokens_.begin(), draft_tokens_.end(),
                                    [&](TokenId token) { return token >= target_vocabulary_; });
  draft_tokens_.erase(foreign, draft_tokens_.end());
}

Request AnswerRounds::target_request() {
  draft_no_more_ |= drafts_wanted() == 0;
  Request request = request_;
  request.stop_after_drafts = !draft_no_more_;
  request.timeout = time_left();
  request.draft_tokens = std::exchange(draft_tokens_, {});
  request.draft_logits = std::exchange(draft_logits_, {});
  if (request.draft_tokens.empty()) request.draft_acceptance_threshold.reset();
  return request;
}

void AnswerRounds::take(Result& result) {
  if (request_id_ == 0) request_id_ = result.request_id;
  if (!result.failed) {
    result.prefix_tokens = last_generated();
    append(result.tokens);
    for (const float log_prob : result.log_probs) cum_log_prob_ += log_prob;
    result.cum_log_prob = cum_log_prob_;
    if (request_.output.perf_metrics) join(result.perf);
  }
  describe(result);
  const bool is_last = result.failed || result.finish_reason != FinishReason::kNotFinished;
  result.sequence_final = result.request_final = is_last;
}

void AnswerRounds::describe(Result& result) const {
  result.request_id = request_id_;
  result.num_prompt_tokens = num_prompt_;
  result.num_generated_tokens = num_generated();
}

void AnswerRounds::append(const std::vector<TokenId>& tokens) {
  request_.input_ids.insert(request_.input_ids.end(), tokens.begin(), tokens.end());
  request_.continued_tokens += static_cast<int>(tokens.size());
  request_.max_tokens -= static_cast<int>(tokens.size());
  std::vector<uint64_t>& extra_ids = request_.prompt_tuning.extra_ids;
  if (!extra_ids.empty()) extra_ids.resize(request_.input_ids.size());
}

std::vector<TokenId> AnswerRounds::last_generated() const {
  const int count = std::min(request_.output.prefix_tokens, num_generated());
  return {request_.input_ids.end() - count, request_.input_ids.end()};
}

void AnswerRounds::join(PerfMetrics& round) {
  PerfMetrics whole = perf_;
  if (perf_.arrival_time_ns == 0) {
    whole = round;
    whole.arrival_time_ns = arrival_ns_;
  } else {
    if (round.last_token_time_ns != 0) whole.last_token_time_ns = round.last_token_time_ns;
    whole.draft_tokens += round.draft_tokens;
    whole.accepted_draft_tokens += round.accepted_draft_tokens;
  }
  round = perf_ = whole;
}

Result AnswerRounds::timed_out() const {
  Result result;
  describe(result);
  result.finish_reason = FinishReason::kTimedOut;
  result.sequence_final = result.request_final = true;
  result.prefix_tokens = last_generated();
  result.cum_log_prob = cum_log_prob_;
  result.perf = perf_;
  if (request_.output.perf_metrics) result.perf.arrival_time_ns = arrival_ns_;
  return result;
}

Result AnswerRounds::failed(ErrorCode code, const std::string& why) const {
  Result result;
  describe(result);
  result.finish_reason = code == ErrorCode::kCancelled ? FinishReason::kCancelled : FinishReason::kNotFinished;
  result.sequence_final = result.request_final = result.failed = true;
  result.error_code = code;
  result.error = why;
  return result;
}

}  // namespace inflight
