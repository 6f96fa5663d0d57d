#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "inflight_batcher/kv_cache/block_key.h"

namespace inflight {

/// What token runs are known, as a tree: a node is the content of one KV block, the path from the root to it spells the
/// tokens before it, virtual ones with their extra ids. A node of fewer than block_size tokens is partial and always a
/// leaf.
///
/// The children of a node are sorted by their tokens. So a binary search that compares tokens finds a whole block
/// exactly, and the child that shares the longest prefix with a query is a neighbour of the place where the query would
/// stand. No child's tokens are a prefix of a sibling's.
class PrefixTree {
 public:
  using Node = int32_t;
  static constexpr Node kRoot = 0;
  static constexpr Node kNone = -1;

  struct Match {
    Node node = kNone;
    int length = 0;  // leading tokens in common
  };

  PrefixTree(int max_nodes, int block_size);

  /// Adds a child of 1 to block_size tokens. The caller has seen to the rule on prefixes among siblings.
  Node insert(Node parent, const BlockKey& key);
  void erase(Node leaf);

  /// The child with exactly this key, or kNone.
  Node find(Node parent, const BlockKey& key) const;

  /// The child whose key is a proper prefix of `key` (a partial one), or kNone.
  Node find_prefix(Node parent, const BlockKey& key) const;

  /// The child that shares the most leading tokens with `key`; kNone when none shares the first.
  Match longest_match(Node parent, const BlockKey& key) const;

  BlockKey key(Node node) const;
  Node parent(Node node) const { return nodes_[node].parent; }
  bool is_leaf(Node node) const { return nodes_[node].children.empty(); }
  int size() const { return static_cast<int>(nodes_.size() - 1 - free_.size()); }

  /// Throws Error(kInternal) naming the first broken invariant.
  void check_invariants() const;

 private:
  struct Item {
    Node parent = kNone;
    int length = 0;
    std::vector<Node> children;       // sorted by keys
    std::vector<uint64_t> extra_ids;  // [length], or empty where all are 0
  };
  using Children = std::vector<Node>;

  Children::const_iterator lower_bound(Node parent, const BlockKey& key) const;
  void check_children(Node node) const;

  int block_size_;
  std::vector<Item> nodes_;      // [1 + max_nodes]
  std::vector<TokenId> tokens_;  // [1 + max_nodes, block_size]
  std::vector<Node> free_;
};

}  // namespace inflight
