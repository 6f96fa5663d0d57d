#include <gtest/gtest.h>

#include "tests/batcher/executor_fixture.h"
#include "tests/faults/failing_allocator.h"

namespace inflight {
namespace {

using testing::Answer;
using testing::FailingAllocator;
using testing::make_request;

/// An allocation that fails in the executor's threads costs the requests of that moment, and nothing after.
class AllocationTest : public testing::ExecutorTest {
 protected:
  AllocationTest() {
    FailingAllocator::spare_this_thread();
    for (const Request& request : requests()) expected_.push_back(answer(*reference(), request));
  }
  ~AllocationTest() override { FailingAllocator::disarm(); }

  /// Requests that take the executor's different ways: streamed and whole, several sequences, logits, words.
  static std::vector<Request> requests() {
    std::vector<Request> all(3, make_request({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}));
    all[0].sampling.num_return_sequences = 2;
    all[0].output.log_probs = all[0].output.generation_logits = true;
    all[1].input_ids = {4, 8, 15, 16, 2};
    all[1].output.streaming = false;
    all[1].output.context_logits = true;
    all[2].stop_words = {{3, 4, 5}, {6}};
    all[2].bad_words = {{1, 2}};
    all[2].output.prefix_tokens = 4;
    return all;
  }

  static std::shared_ptr<Answer> send(Executor& executor, Request request) {
    auto answer = std::make_shared<Answer>();
    executor.submit(std::move(request), [answer](Result&& result) {
      FailingAllocator::spare_this_thread();
      answer->take(std::move(result));
    });
    return answer;
  }

  static std::vector<TokenId> answer(Executor& executor, const Request& request) {
    return send(executor, request)->tokens();
  }

  Executor* reference() {
    if (!executor_) executor_ = make(config());
    return executor_.get();
  }

  /// Every request ends once: with its answer, or with an error that tells why.
  void expect_ends(const std::vector<std::shared_ptr<Answer>>& answers) const {
    for (size_t i = 0; i < answers.size(); ++i) {
      const Result last = answers[i]->wait();
      const std::vector<TokenId> found = answers[i]->tokens();
      ASSERT_LE(found.size(), expected_[i].size());
      EXPECT_TRUE(std::equal(found.begin(), found.end(), expected_[i].begin()));
      if (last.failed) {
        EXPECT_EQ(last.error_code, ErrorCode::kInternal);
        EXPECT_NE(last.error.find("bad_alloc"), std::string::npos) << last.error;
      } else if (answers[i]->finals() == 1) {  // of several sequences another one may have failed
        EXPECT_EQ(found, expected_[i]);
      }
      EXPECT_EQ(answers[i]->finals(), requests()[i].sampling.num_return_sequences);
    }
  }

  void expect_works() {
    for (size_t i = 0; i < expected_.size(); ++i) EXPECT_EQ(answer(*reference(), requests()[i]), expected_[i]);
    expect_nothing_left(*reference());
  }

  std::unique_ptr<Executor> executor_;
  std::vector<std::vector<TokenId>> expected_;
};

TEST_P(AllocationTest, EveryAllocationMayFailOnce) {
  long failures = 0;
  for (long skipped = 0;; skipped += 1 + skipped / 12) {
    FailingAllocator::arm(skipped, 1 + skipped % 3);
    std::vector<std::shared_ptr<Answer>> answers;
    for (const Request& request : requests()) answers.push_back(send(*reference(), request));
    expect_ends(answers);
    FailingAllocator::disarm();
    failures += FailingAllocator::failures();
    if (FailingAllocator::failures() == 0) break;  // the requests need no more than that
    expect_works();
    ASSERT_FALSE(HasFailure()) << "after " << skipped << " allocations";
  }
  EXPECT_GT(failures, 50);
}

TEST_P(AllocationTest, AnswersComeWhenMemoryComesBack) {
  constexpr long kAll = 1L << 40;
  FailingAllocator::arm(0, kAll);
  std::vector<std::shared_ptr<Answer>> answers;
  for (const Request& request : requests()) answers.push_back(send(*reference(), request));
  while (FailingAllocator::failures() < 3) std::this_thread::yield();
  FailingAllocator::disarm();
  expect_ends(answers);
  expect_works();
}

TEST_P(AllocationTest, TheEndComesWhenMemoryComesBack) {
  constexpr long kAll = 1L << 40;
  std::vector<std::shared_ptr<Answer>> answers;
  for (const Request& request : requests()) answers.push_back(send(*reference(), request));
  FailingAllocator::arm(0, kAll);
  std::jthread memory([] {
    FailingAllocator::spare_this_thread();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    FailingAllocator::disarm();
  });
  executor_.reset();
  for (const auto& answer : answers) EXPECT_TRUE(answer->done());
}

INSTANTIATE_TEST_SUITE_P(Layouts, AllocationTest, testing::kLayouts, testing::layout_name);

}  // namespace
}  // namespace inflight
