#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "inflight_batcher/scheduler/scheduler.h"

namespace inflight {

/// A scheduler over a small pool (64 blocks of 4 tokens unless made otherwise) and shorthands for the engine's part.
class SchedulerTest : public testing::Test {
 protected:
  void TearDown() override {
    if (!scheduler_) return;
    scheduler_->check_invariants();
    cache_->check_invariants();
  }

  void make(const Scheduler::Config& config, int num_blocks = 64, bool reuse = false) {
    cache_ = std::make_unique<KvCacheManager>(
        KvCacheManager::Config{.num_blocks = num_blocks, .block_size = 4, .enable_reuse = reuse});
    scheduler_ = std::make_unique<Scheduler>(config, *cache_);
  }

  /// Prompts of different ids share nothing unless `first_token` says so.
  void add(SequenceId id, int prompt_tokens, int max_total_tokens, float priority = 0.5f, TokenId first_token = -1) {
    std::vector<TokenId> prompt(prompt_tokens);
    std::iota(prompt.begin(), prompt.end(), first_token >= 0 ? first_token : static_cast<TokenId>(1000 * id));
    scheduler_->add({id, std::move(prompt), max_total_tokens, priority});
  }

  Scheduler::Step plan() {
    Scheduler::Step step = scheduler_->plan();
    scheduler_->check_invariants();
    cache_->check_invariants();
    return step;
  }

  void complete(const Scheduler::Step& step) {
    for (const Scheduler::Item& item : step.items) {
      scheduler_->complete(item, item.samples ? std::optional<TokenId>(7) : std::nullopt);
    }
  }

  Scheduler::Step advance() {
    Scheduler::Step step = plan();
    complete(step);
    return step;
  }

  /// Completes a step and finishes what has all its tokens, `total` each.
  Scheduler::Step advance_to(int total) {
    Scheduler::Step step = advance();
    for (const Scheduler::Item& item : step.items) {
      if (static_cast<int>(scheduler_->tokens(item.id).size()) == total) scheduler_->finish(item.id);
    }
    return step;
  }

  /// "id:first+count" of each item, "*" behind those that sample.
  static std::string describe(const Scheduler::Step& step) {
    std::string text;
    for (const Scheduler::Item& item : step.items) {
      text += concat(text.empty() ? "" : " ", item.id, ":", item.first, "+", item.count, item.samples ? "*" : "");
    }
    return text;
  }

  std::unique_ptr<KvCacheManager> cache_;
  std::unique_ptr<Scheduler> scheduler_;
};

}  // namespace inflight
