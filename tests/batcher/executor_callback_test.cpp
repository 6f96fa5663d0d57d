#include <gtest/gtest.h>

#include <chrono>
#include <future>

#include "tests/batcher/executor_fixture.h"

namespace inflight {
namespace {

using testing::Answer;
using testing::ask;
using testing::make_request;

const std::vector<TokenId> kPrompt = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};

/// What callbacks do to the executor: they may throw, and they may end sequences.
class ExecutorCallbackTest : public testing::ExecutorTest {
 protected:
  ~ExecutorCallbackTest() override { executor_.reset(); }

  /// A request whose callback throws at the results that `refuses` picks; what it takes is the answer.
  std::shared_ptr<Answer> ask_refusing(Request request, std::function<void(const Result&)> refuse) {
    auto answer = std::make_shared<Answer>();
    executor_->submit(std::move(request), [answer, refuse](Result&& result) {
      refuse(result);
      answer->take(std::move(result));
    });
    return answer;
  }

  static void expect_internal(const Result& result, const std::string& text) {
    EXPECT_TRUE(result.failed && result.sequence_final);
    EXPECT_EQ(static_cast<int>(result.error_code), static_cast<int>(ErrorCode::kInternal));
    EXPECT_EQ(result.error, "the callback for results failed: " + text);
  }

  std::unique_ptr<Executor> executor_ = make(config());
};

TEST_P(ExecutorCallbackTest, ARequestWhoseCallbackThrowsFailsAndTheExecutorGoesOn) {
  const std::vector<TokenId> expected = ask(*executor_, make_request(kPrompt))->tokens();
  const auto beside = ask(*executor_, make_request(kPrompt, 60));
  const auto answer = ask_refusing(make_request(kPrompt, 500), [](const Result& result) {
    if (!result.failed && result.num_generated_tokens == 3) throw std::runtime_error("no more of it");
  });
  expect_internal(answer->wait(), "no more of it");
  EXPECT_EQ(answer->tokens().size(), 2u) << "nothing comes between what it threw at and the failure";
  EXPECT_EQ(beside->tokens().size(), 60u);
  EXPECT_EQ(ask(*executor_, make_request(kPrompt))->tokens(), expected);
  expect_nothing_left(*executor_);
  EXPECT_EQ(executor_->stats().requests_failed, 1);
  EXPECT_EQ(executor_->stats().requests_cancelled, 0);
}

TEST_P(ExecutorCallbackTest, ACallbackThatHangsShows) {
  std::promise<void> begun, go_on;
  EXPECT_EQ(executor_->stats().delivery_seconds, 0.0);
  Request request = make_request(kPrompt);
  request.output.streaming = false;
  const auto answer = ask_refusing(request, [&](const Result&) {
    begun.set_value();
    go_on.get_future().wait();
  });
  begun.get_future().wait();
  const double first = executor_->stats().delivery_seconds, then = executor_->stats().delivery_seconds;
  EXPECT_GT(first, 0.0);
  EXPECT_GT(then, first);
  go_on.set_value();
  answer->wait();
  expect_nothing_left(*executor_);
  const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (executor_->stats().delivery_seconds > 0) ASSERT_LT(std::chrono::steady_clock::now(), end);
}

TEST_P(ExecutorCallbackTest, TheFinalResultComesOnceMoreAsAFailure) {
  Request request = make_request(kPrompt);
  request.output.streaming = false;
  const auto answer = ask_refusing(request, [](const Result& result) {
    if (!result.failed) throw 42;
  });
  expect_internal(answer->wait(), "an exception that is no std::exception");
  expect_nothing_left(*executor_);
}

TEST_P(ExecutorCallbackTest, EverySequenceOfTheRequestFails) {
  Request request = make_request(kPrompt, 500);
  request.sampling.num_return_sequences = 3;
  const auto answer = ask_refusing(request, [](const Result& result) {
    if (!result.failed && result.sequence_index == 1) throw std::runtime_error("not this one");
  });
  expect_internal(answer->wait(), "not this one");
  EXPECT_EQ(answer->finals(), 3);
  expect_nothing_left(*executor_);
}

TEST_P(ExecutorCallbackTest, OneThatAlwaysThrowsHearsOfEachEndOnce) {
  std::atomic<int> finals{0};
  for (int i = 0; i < 3; ++i) {
    ask_refusing(make_request(kPrompt, 500), [&](const Result& result) {
      finals += result.sequence_final;
      throw std::runtime_error("never");
    });
  }
  EXPECT_EQ(ask(*executor_, make_request(kPrompt))->tokens().size(), 12u);
  executor_.reset();
  EXPECT_EQ(finals, 3);
}

/// Orders that arrive while a request's first step is held back.
class ExecutorEndOrderTest : public ExecutorCallbackTest {
 protected:
  static Request request_of(int sequences) {
    Request request = make_request(kPrompt, 60);
    request.sampling.num_return_sequences = sequences;
    request.sampling.top_k = 20;
    return request;
  }

  std::shared_ptr<Answer> ask_and_end(const Request& request, const std::vector<int>& sequences) {
    testing::Fault::instance().hold = true;
    RequestId id = 0;
    auto answer = ask(*executor_, request, &id);
    for (const int sequence : sequences) executor_->cancel(id, sequence);
    testing::Fault::instance().hold = false;
    answer->wait();
    return answer;
  }
};

TEST_P(ExecutorEndOrderTest, OneSequenceEndsAlone) {
  const auto whole = ask(*executor_, request_of(3));
  for (const int ended : {0, 2}) {
    const auto answer = ask_and_end(request_of(3), {ended, 7});
    EXPECT_EQ(answer->finals(), 3);
    for (int sequence = 0; sequence < 3; ++sequence) {
      if (sequence == ended) {
        EXPECT_LT(answer->tokens(sequence).size(), 60u);
      } else {
        EXPECT_EQ(answer->tokens(sequence), whole->tokens(sequence));
      }
    }
  }
  expect_nothing_left(*executor_);
  EXPECT_EQ(executor_->stats().requests_completed, 3);
  EXPECT_EQ(executor_->stats().requests_cancelled, 0);
}

TEST_P(ExecutorEndOrderTest, ARequestIsCancelledWhenAllItsSequencesAre) {
  const auto answer = ask_and_end(request_of(2), {1, 0});
  EXPECT_EQ(static_cast<int>(answer->wait().error_code), static_cast<int>(ErrorCode::kCancelled));
  EXPECT_EQ(answer->finals(), 2);
  expect_nothing_left(*executor_);
  EXPECT_EQ(executor_->stats().requests_cancelled, 1);
}

INSTANTIATE_TEST_SUITE_P(Layouts, ExecutorCallbackTest, testing::kLayouts, testing::layout_name);
INSTANTIATE_TEST_SUITE_P(Layouts, ExecutorEndOrderTest, testing::kLayouts, testing::layout_name);

}  // namespace
}  // namespace inflight
