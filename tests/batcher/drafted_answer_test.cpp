#include "inflight_batcher/api/drafted_answer.h"

#include "tests/batcher/drafted_fixture.h"

namespace inflight {
namespace {

using testing::Answer;
using testing::ask;
using testing::kPrompt;
using testing::make_request;
using testing::TinyNetwork;
using testing::Transcript;

/// All results of one answer, in order, when it has ended.
using Results = std::vector<Result>;

class DraftedAnswerTest : public testing::DraftedTest {
 protected:
  Results results_of(Executor& draft, const Request& request, const DraftingConfig& config) {
    Results results;
    const auto answer = std::make_shared<Answer>();
    DraftedAnswer::submit(*target_, draft, request, config, [&results, answer](Result&& result) {
      results.push_back(result);
      answer->take(std::move(result));
    });
    answer->wait();
    return results;
  }

  /// By request, all of them at once.
  std::vector<Transcript> transcripts(Executor& draft, const std::vector<Request>& requests, int drafts) {
    std::vector<Transcript> transcripts(requests.size());
    std::vector<std::shared_ptr<Answer>> answers;
    for (size_t i = 0; i < requests.size(); ++i) {
      answers.push_back(std::make_shared<Answer>());
      const auto take = [&, i, answer = answers.back()](Result&& result) {
        EXPECT_FALSE(result.failed) << result.error;
        transcripts[i].take(result);
        accepted_ += result.request_final ? result.perf.accepted_draft_tokens : 0;
        answer->take(std::move(result));
      };
      if (drafts == 0)
        target_->submit(requests[i], take);
      else
        DraftedAnswer::submit(*target_, draft, requests[i], {drafts, false}, take);
    }
    for (const auto& answer : answers) answer->wait();
    return transcripts;
  }

  void expect_as_alone(Executor& draft, const std::vector<Request>& requests, int drafts) {
    const std::vector<Transcript> expected = transcripts(draft, requests, 0),
                                  found = transcripts(draft, requests, drafts);
    for (size_t i = 0; i < requests.size(); ++i) {
      EXPECT_EQ(expected[i].tokens, found[i].tokens) << "request " << i << " with " << drafts << " drafts";
      EXPECT_TRUE(expected[i] == found[i]) << "request " << i << " with " << drafts << " drafts";
    }
  }

  /// The draft model with another vocabulary. Tokens that the target lacks are often its choice.
  static void write_with_vocabulary(const std::filesystem::path& folder, int vocabulary) {
    TinyNetwork network;
    network.layers = 1;
    testing::json plan = network.plan();
    plan["network"]["vocabulary_size"] = vocabulary;
    auto tensors = network.tensors();
    for (const char* name : {"embedding", "head"}) {
      plan["weights"][name]["shape"][0] = vocabulary;
      tensors[name].shape[0] = vocabulary;
      std::vector<float> values(TinyNetwork::kVocabulary * TinyNetwork::kWidth);
      std::memcpy(values.data(), tensors[name].bytes.data(), values.size() * sizeof(float));
      const size_t own = values.size();
      values.resize(static_cast<size_t>(vocabulary) * TinyNetwork::kWidth);
      for (size_t i = own; i < values.size(); ++i) values[i] = 2 * values[i - own];
      tensors[name].bytes = testing::bytes_of(values);
    }
    plan["weights"]["head"]["sources"][0]["units"] = vocabulary;
    testing::write_safetensors(folder / "model.safetensors", tensors);
    testing::write_file(folder / "plan.json", plan.dump());
  }

  std::atomic<int> accepted_{0};
};

std::vector<Request> requests_for_drafting(int count, unsigned seed) {
  std::vector<Request> requests = testing::draw_requests(count, seed);
  for (Request& request : requests) {
    request.output.streaming = request.output.perf_metrics = true;
    request.output.context_logits = false;
    request.output.additional_outputs.clear();
    request.sampling.num_return_sequences = 1;
    if (request.sampling.seed % 4 == 0) request.sampling.top_p_decay = 0.7f;
  }
  return requests;
}

TEST_F(DraftedAnswerTest, AnswersAreThoseOfTheTargetAlone) {
  for (const bool plan_ahead : {false, true}) {
    start(plan_ahead);
    for (const int drafts : {1, 2, 7, 100}) expect_as_alone(*draft_, requests_for_drafting(60, drafts), drafts);
  }
  EXPECT_GT(accepted_, 500);
}

TEST_F(DraftedAnswerTest, ItsOwnDraftsAreRight) {
  start();
  const std::vector<Request> requests = requests_for_drafting(60, 5);
  expect_as_alone(*target_, requests, 3);
  Request request = make_request(kPrompt, 40);
  request.output.perf_metrics = true;
  const Results results = results_of(*target_, request, {7, false});
  ASSERT_EQ(results.size(), 5u);
  for (const Result& result : results) EXPECT_EQ(result.tokens.size(), 8u);
  EXPECT_EQ(results.back().perf.draft_tokens, 35);
  EXPECT_EQ(results.back().perf.accepted_draft_tokens, 35);
}

TEST_F(DraftedAnswerTest, ARoundComputesOnlyWhatIsNew) {
  start();
  Request request = make_request(kPrompt, 40);
  ask(*target_, request)->wait();
  for (const Executor* executor : {target_.get(), draft_.get()}) settled(*executor);
  const ExecutorStats before = settled(*target_);
  const size_t rounds = results_of(*target_, request, {3, false}).size();
  EXPECT_EQ(rounds, 10u);
  EXPECT_LE(settled(*target_).tokens_prefilled - before.tokens_prefilled, static_cast<int64_t>(4 * rounds));
}

TEST_F(DraftedAnswerTest, EachResultIsThatOfTheWholeAnswerSoFar) {
  start();
  Request request = make_request(kPrompt, 30);
  request.output.log_probs = request.output.perf_metrics = true;
  request.output.prefix_tokens = 5;
  const Results results = results_of(*draft_, request, {4, false});
  ASSERT_GT(results.size(), 3u);
  std::vector<TokenId> tokens;
  float cum_log_prob = 0;
  int drafted = 0;
  for (const Result& result : results) {
    EXPECT_EQ(result.request_id, results[0].request_id);
    EXPECT_NE(result.request_id, 0u);
    EXPECT_EQ(result.sequence_index, 0);
    EXPECT_EQ(result.sequence_final, &result == &results.back());
    EXPECT_EQ(result.request_final, result.sequence_final);
    EXPECT_EQ(result.finish_reason, result.sequence_final ? FinishReason::kLength : FinishReason::kNotFinished);
    EXPECT_EQ(result.num_prompt_tokens, static_cast<int>(kPrompt.size()));
    const size_t prefix = std::min<size_t>(5, tokens.size());
    EXPECT_EQ(result.prefix_tokens, std::vector<TokenId>(tokens.end() - static_cast<int>(prefix), tokens.end()));
    tokens.insert(tokens.end(), result.tokens.begin(), result.tokens.end());
    EXPECT_EQ(result.num_generated_tokens, static_cast<int>(tokens.size()));
    for (const float log_prob : result.log_probs) cum_log_prob += log_prob;
    EXPECT_EQ(result.cum_log_prob, cum_log_prob);
    const PerfMetrics &perf = result.perf, &first = results[0].perf;
    EXPECT_GT(perf.draft_tokens, result.sequence_final ? 0 : drafted);
    drafted = perf.draft_tokens;
    EXPECT_EQ(perf.accepted_draft_tokens, result.num_generated_tokens - 1 - (&result - results.data()));
    EXPECT_EQ(perf.kv_alloc_new_blocks, first.kv_alloc_new_blocks);
    EXPECT_EQ(perf.kv_reused_blocks, 0);
    EXPECT_EQ(perf.arrival_time_ns, first.arrival_time_ns);
    EXPECT_LT(perf.arrival_time_ns, perf.first_scheduled_time_ns);
    EXPECT_EQ(perf.first_token_time_ns, first.first_token_time_ns);
    EXPECT_GE(perf.last_token_time_ns, (&result - (&result != &results[0]))->perf.last_token_time_ns);
  }
  EXPECT_GT(results.back().perf.last_token_time_ns, results[0].perf.last_token_time_ns);
}

TEST_F(DraftedAnswerTest, AnEndIdIsADraft) {
  start();
  Request request = make_request(kPrompt, 40);
  const std::vector<TokenId> tokens = ask(*target_, request)->tokens();
  size_t at = 1;
  while (std::find(tokens.begin(), tokens.begin() + static_cast<int>(at), tokens[at]) !=
         tokens.begin() + static_cast<int>(at))
    ++at;
  request.end_id = tokens[at];
  request.output.perf_metrics = true;
  const Results results = results_of(*target_, request, {static_cast<int>(at) + 1, false});
  ASSERT_EQ(results.size(), 1u);
  EXPECT_EQ(results[0].finish_reason, FinishReason::kEndId);
  EXPECT_EQ(results[0].tokens, std::vector<TokenId>(tokens.begin(), tokens.begin() + static_cast<int>(at)));
  EXPECT_EQ(results[0].perf.draft_tokens, static_cast<int>(at) + 1);
}

TEST_F(DraftedAnswerTest, StopWordsReachOverRounds) {
  start();
  Request request = make_request(kPrompt, 40);
  request.sampling.top_p = 1.0f;
  request.sampling.temperature = 2.0f;
  const std::vector<TokenId> tokens = ask(*target_, request)->tokens();
  for (int end = 4; end <= 40; end += 5) {
    request.stop_words = {{tokens.begin() + end - 4, tokens.begin() + end}};
    const Results results = results_of(*draft_, request, {1, false});
    EXPECT_EQ(results.back().num_generated_tokens, end);
    EXPECT_EQ(results.back().finish_reason, FinishReason::kStopWords);
  }
}

TEST_F(DraftedAnswerTest, WithLogitsAnswersRepeatThemselves) {
  start();
  int accepted = 0, others = 0;
  for (unsigned seed = 0; seed < 20; ++seed) {
    Request request = make_request(kPrompt, 40);
    request.sampling.top_k = 8;
    request.sampling.seed = seed;
    request.output.perf_metrics = true;
    request.end_id = 3;
    if (seed % 2) request.draft_acceptance_threshold = 0.5f;
    const auto tokens_of = [](const Results& results) {
      std::vector<TokenId> all;
      for (const Result& result : results) all.insert(all.end(), result.tokens.begin(), result.tokens.end());
      return all;
    };
    const Results first = results_of(*draft_, request, {4, true}), again = results_of(*draft_, request, {4, true});
    EXPECT_FALSE(first.back().failed) << first.back().error;
    EXPECT_EQ(tokens_of(first), tokens_of(again));
    accepted += first.back().perf.accepted_draft_tokens;
    Request alone = request;
    alone.draft_acceptance_threshold.reset();
    others += tokens_of(first) != ask(*target_, alone)->tokens();
    alone.sampling.top_k = request.sampling.top_k = 1;
    EXPECT_EQ(tokens_of(results_of(*draft_, request, {4, true})), ask(*target_, alone)->tokens()) << "greedy";
  }
  EXPECT_GT(accepted, 40);
  EXPECT_GT(others, 5) << "the draft model's draws take part";
}

TEST_F(DraftedAnswerTest, AnswersEndAtTheSequenceLimit) {
  start();
  Request request = make_request(kPrompt, 500);
  while (request.input_ids.size() < 200)
    request.input_ids.push_back(static_cast<TokenId>(request.input_ids.size() % 23));
  expect_as_alone(*draft_, {request}, 6);
  EXPECT_EQ(results_of(*draft_, request, {6, false}).back().num_generated_tokens, TinyNetwork::kPositions - 200);
  config_.max_sequence_length = 220;
  Executor shorter(draft_folder_.path().string(), config_);
  expect_as_alone(shorter, {request}, 6);
}

TEST_F(DraftedAnswerTest, WithoutChunksTheRestIsOneRequest) {
  config_.enable_chunked_context = false;
  start();
  const Request request = make_request(kPrompt, 60);
  expect_as_alone(*draft_, {request}, 3);
  const ExecutorStats stats = settled(*draft_);
  EXPECT_GE(stats.requests_completed, 2);
  EXPECT_LE(stats.requests_completed, 12) << "drafts as far as max_num_tokens takes a prompt";
}

TEST_F(DraftedAnswerTest, AFullQueueCostsDraftsAlone) {
  start();
  config_.max_batch_size = config_.max_queue_size = 1;
  draft_ = std::make_unique<Executor>(draft_folder_.path().string(), config_);
  const auto alone = ask(*target_, make_request(kPrompt, 40))->tokens();
  std::vector<std::shared_ptr<Answer>> answers;
  testing::Fault::instance().hold = true;
  for (int i = 0; i < 4; ++i) answers.push_back(ask_drafted(make_request(kPrompt, 40), 4));
  EXPECT_EQ(draft_->stats().active_requests, 2);
  EXPECT_EQ(target_->stats().active_requests, 2);
  testing::Fault::instance().hold = false;
  for (const auto& answer : answers) EXPECT_EQ(answer->tokens(), alone);
}

TEST_F(DraftedAnswerTest, ADraftModelThatFailsCostsDraftsAlone) {
  testing::write_engine(folder_.path(), TinyNetwork().plan());  // without the fault
  start();
  Request request = make_request(kPrompt, 20);
  request.input_ids.push_back(testing::Fault::kPoison);
  const auto alone = ask(*target_, request)->tokens();
  testing::Fault::instance().armed = true;
  EXPECT_EQ(ask_drafted(request, 4)->tokens(), alone);
  EXPECT_GE(draft_->stats().requests_failed, 15) << "asked again in each round";
  testing::Fault::instance().armed = false;
}

TEST_F(DraftedAnswerTest, VirtualTokensAreTheTargetsAffair) {
  start();
  auto table = std::make_shared<PromptTable>();
  *table = {2, TinyNetwork::kWidth, std::vector<float>(2 * TinyNetwork::kWidth, 0.3f)};
  Request request = make_request(kPrompt, 30);
  request.input_ids.insert(request.input_ids.begin() + 3, {TinyNetwork::kVocabulary, TinyNetwork::kVocabulary + 1});
  request.prompt_tuning.table = table;
  expect_as_alone(*draft_, {request}, 4);
  request.prompt_tuning.extra_ids.assign(request.input_ids.size(), 0);
  request.prompt_tuning.extra_ids[3] = request.prompt_tuning.extra_ids[4] = 7;
  expect_as_alone(*draft_, {request}, 4);
  EXPECT_EQ(accepted_, 0);
  request = make_request(kPrompt, 30);
  request.output.perf_metrics = true;
  request.prompt_tuning.extra_ids.assign(kPrompt.size(), 7);
  expect_as_alone(*draft_, {request}, 4);
  EXPECT_GT(accepted_, 0) << "ids alone are no virtual tokens";
}

TEST_F(DraftedAnswerTest, ModelsMayBePaddedDifferently) {
  start();
  Request request = make_request(kPrompt, 40);
  request.bad_words = {{22}, {5, 21}};
  request.embedding_bias.assign(TinyNetwork::kVocabulary, 0.0f);
  request.embedding_bias[3] = 1.0f;
  request.output.perf_metrics = true;
  for (const int vocabulary : {20, 23, 40}) {
    testing::TemporaryFolder folder;
    write_with_vocabulary(folder.path(), vocabulary);
    Executor draft(folder.path().string(), config_);
    accepted_ = 0;
    expect_as_alone(draft, {request}, 4);
    EXPECT_TRUE(accepted_ > 0 || vocabulary > TinyNetwork::kVocabulary);
    if (vocabulary == TinyNetwork::kVocabulary) continue;
    testing::expect_error(
        ErrorCode::kInvalidArgument,
        {concat("use_draft_logits with a draft model of ", vocabulary, " tokens, wanted the target's 23")},
        [&] { DraftedAnswer::submit(*target_, draft, request, {4, true}, [](Result&&) {}); });
  }
}

TEST_F(DraftedAnswerTest, WhatRoundsCannotDoIsRefused) {
  start();
  const auto refuse = [&](ErrorCode code, const std::string& text, const std::function<void(Request&)>& change,
                          DraftingConfig config = {4, false}) {
    Request request = make_request(kPrompt);
    change(request);
    testing::expect_error(code, {text}, [&] {
      DraftedAnswer::submit(*target_, *draft_, request, config, [](Result&&) { ADD_FAILURE() << "called"; });
    });
  };
  constexpr auto kInvalid = ErrorCode::kInvalidArgument;
  refuse(kInvalid, "num_draft_tokens is 0, wanted 1 or more", [](Request&) {}, {0, false});
  refuse(kInvalid, "num_draft_tokens with beam_width 2, wanted 1", [](Request& it) { it.sampling.beam_width = 2; });
  refuse(kInvalid, "num_draft_tokens with num_return_sequences 2, wanted 1",
         [](Request& it) { it.sampling.num_return_sequences = 2; });
  refuse(kInvalid, "num_draft_tokens with return_context_logits, wanted one of them",
         [](Request& it) { it.output.context_logits = true; });
  refuse(kInvalid, "num_draft_tokens with 2 draft tokens of the request's own, wanted one of them",
         [](Request& it) { it.draft_tokens = {1, 2}; });
  refuse(kInvalid, "num_draft_tokens with stop_after_draft_tokens, wanted one of them",
         [](Request& it) { it.stop_after_drafts = true; });
  refuse(ErrorCode::kUnsupported, "num_draft_tokens with additional outputs, wanted one of them",
         [](Request& it) { it.output.additional_outputs = {"mark"}; });
  refuse(kInvalid, "the prompt is empty", [](Request& it) { it.input_ids.clear(); });
  refuse(kInvalid, "max_tokens is 0", [](Request& it) { it.max_tokens = 0; });
  refuse(kInvalid, "the prompt has 256 tokens", [](Request& it) { it.input_ids.resize(256, 1); });
  refuse(kInvalid, "stop_words contains an empty word", [](Request& it) { it.stop_words = {{}}; });
  refuse(kInvalid, "draft_acceptance_threshold is 2", [](Request& it) { it.draft_acceptance_threshold = 2.0f; });
  EXPECT_EQ(target_->stats().active_requests + draft_->stats().active_requests, 0);
}

}  // namespace
}  // namespace inflight
