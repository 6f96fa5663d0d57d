#pragma once

#include "inflight_batcher/api/drafted_answer.h"
#include "tests/batcher/executor_transcripts.h"

namespace inflight::testing {

/// The tiny network, and a draft model: its first layer alone, so that some drafts are right.
class DraftedTest : public TranscriptTest {
 protected:
  DraftedTest() {
    TinyNetwork network;
    network.layers = 1;
    json plan = network.plan();
    json& prologue = plan["blocks"]["prologue"];
    prologue[0]["outputs"]["out"] = "untested";
    prologue.push_back(op("test.fault", {{"x", "untested"}}, {}, {{"out", "x"}}));
    write_engine(draft_folder_.path(), plan, network);
    config_.kv_cache.max_tokens = 2048;
    config_.kv_cache.block_size = 4;
  }

  /// Both, with the configuration as it is.
  void start(bool plan_ahead = false) {
    target_ = make(plan_ahead);
    draft_ = std::make_unique<Executor>(draft_folder_.path().string(), config_);
  }

  std::shared_ptr<DraftedAnswer> submit(Request request, int drafts, Executor::Callback callback) {
    return DraftedAnswer::submit(*target_, *draft_, std::move(request), {drafts, false}, std::move(callback));
  }

  std::shared_ptr<Answer> ask_drafted(Request request, int drafts, std::shared_ptr<DraftedAnswer>* handle = nullptr) {
    auto answer = std::make_shared<Answer>();
    auto drafted = submit(std::move(request), drafts, [answer](Result&& result) { answer->take(std::move(result)); });
    if (handle) *handle = drafted;
    return answer;
  }

  void expect_nothing_left() const {
    for (const Executor* executor : {target_.get(), draft_.get()}) EXPECT_EQ(settled(*executor).active_requests, 0);
  }

  TemporaryFolder draft_folder_;
  std::unique_ptr<Executor> target_, draft_;
};

inline void expect_code(const Result& result, ErrorCode code) {
  EXPECT_TRUE(result.failed && result.sequence_final && result.request_final);
  EXPECT_EQ(static_cast<int>(result.error_code), static_cast<int>(code)) << result.error;
}

}  // namespace inflight::testing
