#include <gtest/gtest.h>

#include "tests/batcher/executor_fixture.h"

namespace inflight {
namespace {

using testing::Answer;
using testing::ask;
using testing::Fault;
using testing::make_request;

/// A step that fails takes its own requests along and nobody else.
class ExecutorFaultTest : public testing::ExecutorTest {
 protected:
  void expect_failed(const std::shared_ptr<Answer>& answer, const std::string& text = Fault::kText) {
    const Result result = answer->wait();
    EXPECT_TRUE(result.failed);
    EXPECT_EQ(static_cast<int>(result.error_code), static_cast<int>(ErrorCode::kInternal));
    EXPECT_NE(result.error.find(text), std::string::npos) << result.error;
    EXPECT_NE(result.error.find("test.fault"), std::string::npos) << result.error;
  }
};

const std::vector<TokenId> kPrompt = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
const std::vector<TokenId> kOther = {4, 8, 15, 16, 2};
const std::vector<TokenId> kPoisoned = {1, 2, 3, 4, 5, 6, 7, 8, Fault::kPoison};

TEST_P(ExecutorFaultTest, TheStepsRequestsFailAndAllOthersGoOn) {
  Fault& fault = Fault::instance();
  for (const bool in_epilogue : {false, true}) {
    write(in_epilogue);
    ExecutorConfig config = this->config();
    config.max_batch_size = 2;
    const auto executor = make(config);
    const std::vector<TokenId> expected = ask(*executor, make_request(kPrompt))->tokens();
    const std::vector<TokenId> other = ask(*executor, make_request(kOther))->tokens();
    ASSERT_EQ(expected.size(), 12u);

    for (int round = 0; round < 3; ++round) {
      fault.armed = fault.hold = true;
      const auto neighbour = ask(*executor, make_request(kPrompt));  // is computing when the poison comes
      const auto poisoned = ask(*executor, make_request(kPoisoned));
      const auto waiting = ask(*executor, make_request(kPrompt)), last = ask(*executor, make_request(kOther));
      fault.hold = false;
      expect_failed(poisoned);
      EXPECT_EQ(waiting->tokens(), expected);
      EXPECT_EQ(last->tokens(), other);
      const Result beside = neighbour->wait();
      const bool overlapping =
          GetParam().pipeline_parallel > 1;  // then it is in another step, which may be done before
      EXPECT_TRUE(beside.failed || overlapping);
      if (beside.failed) {
        expect_failed(neighbour);
      } else {
        EXPECT_EQ(neighbour->tokens(), expected);
      }
      fault.armed = false;
      EXPECT_EQ(ask(*executor, make_request(kPrompt))->tokens(), expected);
    }
    expect_nothing_left(*executor);
    EXPECT_GE(executor->stats().requests_failed, 3);
  }
}

TEST_P(ExecutorFaultTest, AnythingThatAnOpThrowsIsTheRequestsError) {
  const auto executor = make(config());
  Fault::instance().armed = Fault::instance().odd_exception = true;
  expect_failed(ask(*executor, make_request(kPoisoned)), "no std::exception");
  EXPECT_EQ(ask(*executor, make_request(kPrompt))->tokens().size(), 12u);
  expect_nothing_left(*executor);
}

TEST_P(ExecutorFaultTest, AllSequencesOfARequestEnd) {
  const auto executor = make(config());
  Fault::instance().armed = true;
  Request request = make_request(kPoisoned);
  request.sampling.num_return_sequences = 3;
  const auto answer = ask(*executor, request);
  expect_failed(answer);
  EXPECT_EQ(answer->finals(), 3);
  expect_nothing_left(*executor);
}

TEST_P(ExecutorFaultTest, AFaultWhileShuttingDownStillDeliversEveryEnd) {
  Fault& fault = Fault::instance();
  fault.armed = fault.hold = true;
  std::vector<std::shared_ptr<Answer>> answers;
  std::jthread release([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    fault.hold = false;
  });
  {
    const auto executor = make(config());
    for (int i = 0; i < 6; ++i) answers.push_back(ask(*executor, make_request(i % 2 ? kPoisoned : kPrompt, 100)));
  }
  release.join();
  for (const auto& answer : answers) EXPECT_TRUE(answer->done());
}

INSTANTIATE_TEST_SUITE_P(Layouts, ExecutorFaultTest, testing::kLayouts, testing::layout_name);

}  // namespace
}  // namespace inflight
