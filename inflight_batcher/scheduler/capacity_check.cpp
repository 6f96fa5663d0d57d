#include "inflight_batcher/scheduler/capacity_check.h"

#include <algorithm>

#include "inflight/error.h"

namespace inflight {

bool CapacityCheck::fits(int prompt_tokens, int max_total_tokens, std::string* why, int beam_width) const {
  const auto refuse = [why](const std::string& text) {
    if (why) *why = text;
    return false;
  };
  if (beam_width > std::min(config_.max_batch_size, config_.max_num_tokens))
    return refuse(concat(beam_width, " beams exceed max_batch_size ", config_.max_batch_size, " or max_num_tokens ",
                         config_.max_num_tokens));
  const int blocks = blocks_of(prompt_tokens, max_total_tokens - 1, beam_width);
  if (blocks > num_blocks_) {
    return refuse(concat(max_total_tokens, " tokens", beam_width > 1 ? " of each beam" : "", " need ", blocks,
                         " KV blocks of ", block_size_, " tokens, the pool has ", num_blocks_));
  }
  const bool recomputes = config_.policy != CapacityPolicy::kGuaranteedNoEvict;
  const int context = recomputes ? std::max(prompt_tokens, max_total_tokens - 1) : prompt_tokens;
  if (!config_.enable_chunked_context && context > config_.max_num_tokens) {
    return refuse(concat("without chunked context ", recomputes ? "recomputing " : "a prompt of ", context,
                         " tokens exceeds max_num_tokens ", config_.max_num_tokens));
  }
  return true;
}

int CapacityCheck::blocks_of(int prompt_tokens, int total_tokens, int beams) const {
  const int blocks = (total_tokens + block_size_ - 1) / block_size_;
  const int shared = std::min(prompt_tokens / block_size_, blocks);
  return shared + beams * (blocks - shared);
}

}  // namespace inflight
