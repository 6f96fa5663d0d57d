#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace inflight {

/// Embeddings of virtual tokens (prompt tuning: Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt
/// Tuning"; images and the like): in the prompt, the id vocabulary + i stands for row i.
struct PromptTable {
  int rows = 0;               // ids of the prompt may go up to vocabulary + rows - 1
  int width = 0;              // the network's hidden size
  std::vector<float> values;  // [at least rows, width]
};

/// What a request says of its virtual tokens.
struct PromptTuning {
  std::shared_ptr<const PromptTable> table;  // null: the prompt has no virtual tokens
  /// By prompt token, or empty: tells the virtual tokens of different tables apart where KV blocks are reused. Virtual
  /// tokens without an id (0) and what follows them are not reused.
  std::vector<uint64_t> extra_ids;
};

}  // namespace inflight
