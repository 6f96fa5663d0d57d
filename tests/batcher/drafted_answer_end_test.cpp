#include <future>

#include "tests/batcher/drafted_fixture.h"

namespace inflight {
namespace {

using namespace std::chrono_literals;
using testing::Answer;
using testing::expect_code;
using testing::Fault;
using testing::kPrompt;
using testing::make_request;

/// How answers made in rounds end before their time.
class DraftedEndTest : public testing::DraftedTest {
 protected:
  static constexpr int kLong = 200;

  void SetUp() override { start(); }

  /// Some time within the first few rounds, or the time of nobody's doing.
  std::chrono::microseconds any_moment() { return std::chrono::microseconds(random_() % 1500); }

  /// An answer whose callback runs `then` before the answer takes the result.
  std::shared_ptr<Answer> ask_with(Request request, std::function<void(const Result&)> then,
                                   std::shared_ptr<DraftedAnswer>* handle = nullptr) {
    auto answer = std::make_shared<Answer>();
    auto drafted = submit(std::move(request), 3, [answer, then](Result&& result) {
      then(result);
      answer->take(std::move(result));
    });
    if (handle) *handle = drafted;
    return answer;
  }

  static void expect_thrown(const Result& result, const std::string& text) {
    expect_code(result, ErrorCode::kInternal);
    EXPECT_EQ(result.error, "the callback for results failed: " + text);
  }

  std::mt19937 random_{7};
};

TEST_F(DraftedEndTest, CancelledAtAnyMoment) {
  const std::vector<TokenId> whole = ask_drafted(make_request(kPrompt, kLong), 2)->tokens();
  int cancelled = 0;
  for (int i = 0; i < 300; ++i) {
    std::shared_ptr<DraftedAnswer> handle;
    const auto answer = ask_drafted(make_request(kPrompt, i % 3 ? kLong : 8), 1 + i % 4, &handle);
    std::this_thread::sleep_for(any_moment());
    handle->cancel();
    if (i % 2) handle->cancel();
    const Result last = answer->wait();
    const std::vector<TokenId> tokens = answer->tokens();
    ASSERT_TRUE(std::equal(tokens.begin(), tokens.end(), whole.begin()));
    cancelled += last.failed;
    if (!last.failed) continue;
    expect_code(last, ErrorCode::kCancelled);
    EXPECT_EQ(last.finish_reason, FinishReason::kCancelled);
    EXPECT_EQ(last.error, "the request was cancelled");
    EXPECT_EQ(last.num_generated_tokens, static_cast<int>(tokens.size()));
    EXPECT_EQ(last.num_prompt_tokens, static_cast<int>(kPrompt.size()));
  }
  EXPECT_GT(cancelled, 50);
  expect_nothing_left();
}

TEST_F(DraftedEndTest, CancelledWhileEitherModelWorks) {
  for (const bool in_draft : {true, false}) {
    if (!in_draft) config_.max_sequence_length = static_cast<int>(kPrompt.size());  // too short for it
    draft_ = std::make_unique<Executor>(draft_folder_.path().string(), config_);
    for (const int drafts : {1, 4}) {
      std::shared_ptr<DraftedAnswer> handle;
      Fault::instance().hold = true;
      const auto answer = ask_drafted(make_request(kPrompt, kLong), drafts, &handle);
      EXPECT_EQ((in_draft ? draft_ : target_)->stats().active_requests, 1);
      EXPECT_EQ((in_draft ? target_ : draft_)->stats().active_requests, 0);
      handle->cancel();
      Fault::instance().hold = false;
      const Result last = answer->wait();
      expect_code(last, ErrorCode::kCancelled);
      EXPECT_LE(last.num_generated_tokens, in_draft ? 0 : 1) << "of the step that was under way";
      expect_nothing_left();
    }
    EXPECT_EQ(target_->stats().requests_cancelled, in_draft ? 0 : 2);
  }
}

TEST_F(DraftedEndTest, CancelledByItsCallback) {
  std::promise<std::shared_ptr<DraftedAnswer>> promise;
  auto handle = promise.get_future().share();
  std::atomic<int> results{0};
  std::shared_ptr<DraftedAnswer> given;
  const auto answer = ask_with(
      make_request(kPrompt, kLong),
      [&, handle](const Result&) {
        if (++results == 2) handle.get()->cancel();
      },
      &given);
  promise.set_value(given);
  expect_code(answer->wait(), ErrorCode::kCancelled);
  EXPECT_EQ(results, 3);
  expect_nothing_left();
}

TEST_F(DraftedEndTest, CancellingAfterTheEndIsIgnored) {
  std::shared_ptr<DraftedAnswer> handle;
  const auto answer = ask_drafted(make_request(kPrompt), 3, &handle);
  EXPECT_EQ(answer->wait().finish_reason, FinishReason::kLength);
  handle->cancel();
  target_.reset();
  draft_.reset();
  handle->cancel();
}

TEST_F(DraftedEndTest, TheTimeOutCountsFromTheSubmission) {
  Request request = make_request(kPrompt, kLong);
  request.output.log_probs = request.output.perf_metrics = true;
  request.output.prefix_tokens = 2;
  for (const int results_before : {0, 1, 3}) {
    int64_t rounds_before = 0;
    std::vector<Result> results;
    std::shared_ptr<Answer> answer;
    // A busy machine may give fewer results in time: then it gets more of it.
    for (request.timeout = 300ms; request.timeout < 1min; request.timeout *= 10) {
      rounds_before = settled(*target_).requests_completed;
      results.clear();
      Fault::instance().hold = results_before == 0;
      answer = ask_with(request, [&](const Result& result) {
        results.push_back(result);
        if (static_cast<int>(results.size()) == results_before) std::this_thread::sleep_for(request.timeout);
      });
      if (results_before == 0) std::this_thread::sleep_for(request.timeout);
      Fault::instance().hold = false;
      answer->wait();
      if (static_cast<int>(results.size()) > results_before) break;
    }
    const Result last = answer->wait();
    EXPECT_FALSE(last.failed);
    EXPECT_EQ(last.finish_reason, FinishReason::kTimedOut);
    EXPECT_GT(last.perf.arrival_time_ns, 0);
    ASSERT_EQ(static_cast<int>(results.size()), results_before + 1);
    EXPECT_EQ(settled(*target_).requests_completed - rounds_before, results_before)
        << "nothing was asked of it in vain";
    if (results_before == 0) continue;
    const Result& before = results[results.size() - 2];
    EXPECT_EQ(last.request_id, before.request_id);
    EXPECT_EQ(last.num_generated_tokens, before.num_generated_tokens);
    EXPECT_EQ(last.cum_log_prob, before.cum_log_prob);
    EXPECT_EQ(last.perf.draft_tokens, before.perf.draft_tokens);
    const std::vector<TokenId> tokens = answer->tokens();
    const auto prefix = std::min<size_t>(2, tokens.size());
    EXPECT_EQ(last.prefix_tokens, std::vector<TokenId>(tokens.end() - static_cast<int>(prefix), tokens.end()));
  }
  request.timeout = std::chrono::microseconds::max();
  EXPECT_EQ(ask_drafted(request, 3)->wait().finish_reason, FinishReason::kLength);
  request.timeout = std::chrono::microseconds(1);
  EXPECT_EQ(ask_drafted(request, 3)->wait().finish_reason, FinishReason::kTimedOut);
  expect_nothing_left();
}

TEST_F(DraftedEndTest, ACallbackThatThrowsEndsTheAnswer) {
  for (const int at : {1, 3}) {
    int results = 0;
    const auto answer = ask_with(make_request(kPrompt, kLong), [&results, at](const Result&) {
      if (++results == at) throw std::runtime_error("no more of it");
    });
    expect_thrown(answer->wait(), "no more of it");
    expect_nothing_left();
    EXPECT_EQ(results, at + 1) << "no round came after it";
  }
}

TEST_F(DraftedEndTest, ThrowingAtTheLastResultBringsItOnceMore) {
  const auto refuse = [](const Result& result) {
    if (result.request_final && result.error_code != ErrorCode::kInternal) throw 42;
    if (result.request_final && !result.failed) throw 42;
  };
  expect_thrown(ask_with(make_request(kPrompt), refuse)->wait(), "an exception that is no std::exception");
  // Here it is the draft model's executor that brings it.
  std::shared_ptr<DraftedAnswer> handle;
  Fault::instance().hold = true;
  const auto answer = ask_with(make_request(kPrompt), refuse, &handle);
  handle->cancel();
  Fault::instance().hold = false;
  expect_thrown(answer->wait(), "an exception that is no std::exception");
  expect_nothing_left();
  EXPECT_EQ(target_->stats().requests_cancelled, 0);
}

TEST_F(DraftedEndTest, OneThatAlwaysThrowsHearsOfTheEndOnceAndIsLetGo) {
  const auto token = std::make_shared<int>();
  std::weak_ptr<int> callback = token;
  std::atomic<int> finals{0}, results{0};
  {
    std::promise<std::shared_ptr<DraftedAnswer>> holder;
    auto self = holder.get_future().share();  // a circle, as a request that holds its answer makes one
    holder.set_value(submit(make_request(kPrompt), 3, [&, self, token](Result&& result) {
      ++results;
      finals += result.request_final;
      throw std::runtime_error("never");
    }));
  }
  while (results < 2) std::this_thread::sleep_for(std::chrono::microseconds(100));
  target_.reset();
  draft_.reset();
  EXPECT_EQ(results, 2);
  EXPECT_EQ(finals, 1);
  EXPECT_EQ(callback.use_count(), 1) << "the test's own";
}

TEST_F(DraftedEndTest, AFailureOfTheTargetEndsTheAnswer) {
  Request poisoned = make_request(kPrompt, 20);
  poisoned.input_ids.push_back(Fault::kPoison);
  Fault::instance().armed = true;
  const Result last = ask_drafted(poisoned, 3)->wait();
  Fault::instance().armed = false;
  expect_code(last, ErrorCode::kInternal);
  EXPECT_NE(last.error.find(Fault::kText), std::string::npos);
  expect_nothing_left();
}

TEST_F(DraftedEndTest, AFullTargetRefusesWhatHasNotBegun) {
  config_.max_batch_size = config_.max_queue_size = 1;
  target_ = make(false);
  Fault::instance().hold = true;
  const auto answer = ask_drafted(make_request(kPrompt), 3);
  std::vector<std::shared_ptr<Answer>> others;
  for (int i = 0; i < 2; ++i) others.push_back(testing::ask(*target_, make_request(kPrompt)));
  testing::expect_error(ErrorCode::kUnavailable, {"Maximum queue size of 1 is reached"},
                        [&] { ask_drafted(make_request(kPrompt), 3); });
  EXPECT_EQ(draft_->stats().active_requests, 1) << "nothing was asked of the draft model";
  Fault::instance().hold = false;
  EXPECT_FALSE(answer->wait().failed) << "its rounds were admitted with it";
  for (const auto& other : others) EXPECT_FALSE(other->wait().failed);
}

TEST_F(DraftedEndTest, ExecutorsEndWithAnswersUnderWay) {
  for (int round = 0; round < 24; ++round) {
    std::vector<std::shared_ptr<Answer>> answers;
    for (int i = 0; i < 6; ++i) answers.push_back(ask_drafted(make_request(kPrompt, kLong), 1 + i));
    std::this_thread::sleep_for(any_moment());
    auto& first = round % 2 ? target_ : draft_;
    auto& second = round % 2 ? draft_ : target_;
    first.reset();
    if (round % 4 == 0) std::this_thread::sleep_for(any_moment());
    second.reset();
    for (const auto& answer : answers) {
      EXPECT_TRUE(answer->done()) << "destructors deliver what is last";
      const Result last = answer->wait();
      if (last.failed) expect_code(last, ErrorCode::kUnavailable);
    }
    start(round % 3 == 0);
  }
}

TEST_F(DraftedEndTest, WithoutItsDraftModelAnAnswerGoesOn) {
  const std::vector<TokenId> whole = ask_drafted(make_request(kPrompt, kLong), 2)->tokens();
  std::atomic<int> results{0};
  std::promise<void> gone;
  const auto go_on = gone.get_future().share();
  const auto answer = ask_with(make_request(kPrompt, kLong), [&, go_on](const Result&) {
    if (++results == 2) go_on.wait();
  });
  while (results < 2) std::this_thread::sleep_for(std::chrono::microseconds(100));
  draft_.reset();
  gone.set_value();
  EXPECT_EQ(answer->tokens(), whole);
  EXPECT_FALSE(answer->wait().failed);
}

}  // namespace
}  // namespace inflight
