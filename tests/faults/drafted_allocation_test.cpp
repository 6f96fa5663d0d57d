#include <array>

#include "tests/batcher/drafted_fixture.h"
#include "tests/faults/failing_allocator.h"

namespace inflight {
namespace {

using testing::FailingAllocator;
using testing::kPrompt;
using testing::make_request;

/// What came back for an answer, taken without any memory.
struct Taken {
  static constexpr int kMost = 64;
  std::array<TokenId, kMost> tokens{};
  int count = 0;
  int after_the_end = 0;
  bool failed = false;
  ErrorCode code = ErrorCode::kInternal;
  std::atomic<bool> done{false};

  void take(const Result& result) {
    after_the_end += done;
    for (const TokenId token : result.tokens)
      if (count < kMost) tokens[static_cast<size_t>(count++)] = token;
    failed = result.failed;
    code = result.error_code;
    done = result.request_final;
  }
};

/// An allocation that fails while an answer is made in rounds, in either executor or between them.
class DraftedAllocationTest : public testing::DraftedTest {
 protected:
  DraftedAllocationTest() {
    FailingAllocator::spare_this_thread();
    request_.output.log_probs = request_.output.perf_metrics = true;
    request_.stop_words = {{1, 2, 3}};
  }
  ~DraftedAllocationTest() override { FailingAllocator::disarm(); }

  std::shared_ptr<Taken> answered() {
    auto taken = std::make_shared<Taken>();
    submit(request_, 3, [taken](Result&& result) { taken->take(result); });
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    while (!taken->done && std::chrono::steady_clock::now() < deadline)
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    EXPECT_TRUE(taken->done) << "no final result";
    return taken;
  }

  Request request_ = make_request(kPrompt, 24);
};

TEST_F(DraftedAllocationTest, EveryAllocationMayFailOnce) {
  start();
  const auto expected = answered();
  long failures = 0, failed = 0;
  for (long skipped = 0;; skipped += 1 + skipped / 60) {
    FailingAllocator::arm(skipped, 1 + skipped % 3);
    const auto found = answered();
    FailingAllocator::disarm();
    EXPECT_EQ(found->after_the_end, 0);
    EXPECT_TRUE(std::equal(found->tokens.begin(), found->tokens.begin() + found->count, expected->tokens.begin()));
    if (found->failed)
      EXPECT_EQ(static_cast<int>(found->code), static_cast<int>(ErrorCode::kInternal));
    else
      EXPECT_EQ(found->count, expected->count);
    failed += found->failed;
    failures += FailingAllocator::failures();
    if (FailingAllocator::failures() == 0) break;  // the answer needs no more than that
    ASSERT_EQ(answered()->tokens, expected->tokens) << "after " << skipped << " allocations";
    ASSERT_FALSE(HasFailure()) << "after " << skipped << " allocations";
  }
  EXPECT_GT(failures, 50);
  EXPECT_GT(failed, 20);
  expect_nothing_left();
}

}  // namespace
}  // namespace inflight
