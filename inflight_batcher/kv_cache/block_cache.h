#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "inflight_batcher/kv_cache/index_list.h"
#include "inflight_batcher/kv_cache/prefix_tree.h"

namespace inflight {

/// The blocks and what is known of their content; knows nothing of sequences beyond how many hold a block.
///
/// A tree node has one block that carries its content, or several when running sequences computed the same content
/// side by side: its copies. Each sequence keeps its own, so tables never change, and all hang their next blocks under
/// the one node. A copy that nobody holds any more is freed at once if another remains; so a node without holder has
/// exactly one block, and that block is evictable.
///
/// Whoever holds a block holds a copy of every block before it, and lets go of the last block first. Hence in the order
/// of release a node always comes after all its descendants: the least recently released block is a leaf, and plain
/// list order is exact LRU order of leaves.
class BlockCache {
 public:
  using Node = PrefixTree::Node;

  BlockCache(int num_blocks, int block_size);

  /// Blocks that allocate() can give: free ones and evictable ones.
  int available() const { return static_cast<int>(free_.size()) + lru_.size(); }
  int cached() const { return lru_.size(); }
  int64_t evicted() const { return evicted_; }
  const PrefixTree& tree() const { return tree_; }
  int32_t block_of(Node node) const { return block_of_node_[node]; }
  Node node_of(int32_t block) const { return blocks_[block].node; }
  bool is_held(Node node) const { return blocks_[block_of_node_[node]].holders > 0; }

  /// A block with unknown content and one holder, evicting if none is free. available() must be > 0.
  int32_t allocate();

  /// One more holder of a block that is held or cached.
  void hold(int32_t block);

  /// One holder less. The last one's leaving frees the block, or with `keep` leaves it cached if it is in the tree
  /// (a block that others' blocks follow in the tree stays cached in any case).
  void release(int32_t block, bool keep);

  /// A held block turns out to carry the full block `tokens` behind `parent`. Returns its node.
  Node publish(Node parent, std::span<const TokenId> tokens, int32_t block);

  /// The holder of a private block whose first tokens are `tokens` (fewer than a block) lets go of it and leaves it
  /// cached, unless a sibling says as much already.
  void release_partial(Node parent, std::span<const TokenId> tokens, int32_t block);

  /// Forgets all that nobody holds.
  void clear();

  /// `holders[block]`: how many tables name the block. Throws Error(kInternal) naming the first broken invariant.
  void check_invariants(std::span<const int> holders) const;

 private:
  struct Block {
    int holders = 0;
    Node node = PrefixTree::kNone;
    int32_t previous_copy = 0;  // ring of the node's copies; itself when alone
    int32_t next_copy = 0;
  };

  bool has_other_copies(int32_t block) const { return blocks_[block].next_copy != block; }
  Node insert_node(Node parent, std::span<const TokenId> tokens, int32_t block);
  void add_copy(Node node, int32_t block);
  void remove_copy(int32_t block);
  void forget_front();
  void forget(int32_t block);
  void free(int32_t block);
  void check_block(int32_t block, int holders) const;
  void check_lru_order() const;

  PrefixTree tree_;
  std::vector<Block> blocks_;           // [num_blocks]
  std::vector<int32_t> block_of_node_;  // [1 + num_blocks] any copy
  std::vector<int32_t> free_;
  IndexList lru_;  // blocks in the tree that nobody holds, least recently released first
  int64_t evicted_ = 0;
};

}  // namespace inflight
