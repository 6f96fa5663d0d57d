#pragma once

#include <string>

#include "inflight_batcher/kv_cache/kv_cache_manager.h"
#include "inflight_batcher/scheduler/scheduler.h"

namespace inflight {

/// What could ever run, by the configuration alone: it may be asked from any thread at any time, also while scheduler
/// and cache start over.
class CapacityCheck {
 public:
  CapacityCheck(const Scheduler::Config& config, const KvCacheManager::Config& kv_cache)
      : config_(config), num_blocks_(kv_cache.num_blocks), block_size_(kv_cache.block_size) {}

  /// See Scheduler::fits.
  bool fits(int prompt_tokens, int max_total_tokens, std::string* why, int beam_width) const;

  /// Blocks of a sequence of so many tokens when its beams share no more than the prompt's whole blocks.
  int blocks_of(int prompt_tokens, int total_tokens, int beams) const;

 private:
  Scheduler::Config config_;
  int num_blocks_;
  int block_size_;
};

}  // namespace inflight
