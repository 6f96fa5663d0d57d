#pragma once

#include <compare>
#include <cstdint>
#include <span>
#include <vector>

#include "inflight/ops/attention.h"
#include "inflight_batcher/api/retention.h"
#include "inflight_batcher/kv_cache/index_heap.h"
#include "inflight_batcher/kv_cache/prefix_tree.h"

namespace inflight {

/// The blocks and what is known of their content; knows nothing of sequences beyond how many hold a block.
///
/// A tree node has one block that carries its content, or several when running sequences computed the same content
/// side by side: its copies. Each sequence keeps its own, so tables never change, and all hang their next blocks under
/// the one node. A copy that nobody holds any more is freed at once if another remains; so a node without holder (a
/// cached one) has exactly one block, and that block can be had.
///
/// Whoever holds a block holds a copy of every block before it. So what follows a cached node in the tree is cached
/// too, and evicting leaves one after the other gets at every cached block. Among the cached leaves the lowest priority
/// gives way first, and in it the least recently released: whoever lets go of blocks lets go of the last one first, so
/// with equal priorities that is the least recently released of all.
///
/// With a host pool, content that would be evicted moves there (offloading), and comes back when a prompt wants it
/// (onboarding): copies() says what the device has to copy, in order. Leaves move first, so what is on the device has
/// all that precedes it there, and in the host's memory is the rest of the tree. It gives way by the same order.
class BlockCache {
 public:
  using Node = PrefixTree::Node;

  BlockCache(int num_blocks, int block_size, int num_host_blocks = 0);

  /// Blocks that allocate() can give: free ones and cached ones.
  int available() const { return static_cast<int>(free_.size()) + cached_; }
  int cached() const { return cached_; }
  int64_t evicted() const { return evicted_; }
  int host_used() const { return static_cast<int>(host_blocks_ - host_free_.size()); }
  int64_t offloaded() const { return offloaded_; }
  int64_t onboarded() const { return onboarded_; }
  const PrefixTree& tree() const { return tree_; }
  int32_t block_of(Node node) const { return nodes_[node].block; }
  Node node_of(int32_t block) const { return blocks_[block].node; }
  int32_t host_block_of(Node node) const { return nodes_[node].host_block; }
  bool is_on_host(Node node) const { return nodes_[node].host_block >= 0; }
  bool is_held(Node node) const { return !is_on_host(node) && blocks_[nodes_[node].block].holders > 0; }

  /// To run on the device in this order, before whatever uses the blocks. The caller takes them out.
  std::vector<KvBlockCopy>& copies() { return copies_; }

  /// The time, in milliseconds from any origin, never backwards. Cached content whose retention has run out falls back
  /// to the default priority.
  void set_time(int64_t now_ms);

  /// A block with unknown content and one holder, offloading or evicting if none is free. available() must be > 0.
  int32_t allocate();

  /// One more holder of a block that is held or cached.
  void hold(int32_t block);

  /// Content in the host's memory that must stay until it is onboarded or unpinned.
  void pin(Node node) { leave_cache(node); }
  void unpin(Node node);

  /// Brings a pinned node's content back into a block with one holder; what precedes it must be on the device.
  int32_t onboard(Node node);

  /// One holder less. The last one's leaving frees the block, or with `keep` leaves it cached if it is in the tree
  /// (a block that others' blocks follow in the tree stays cached in any case).
  void release(int32_t block, bool keep);

  /// A held block turns out to carry the full block `key` behind `parent`. Returns its node.
  Node publish(Node parent, const BlockKey& key, int32_t block);

  /// The holder of a private block whose first tokens are `key` (fewer than a block) lets go of it and leaves it
  /// cached, unless a sibling says as much already. Returns the node that has these tokens.
  Node release_partial(Node parent, const BlockKey& key, int32_t block);

  /// From now on the node's content is kept so hard.
  void retain(Node node, const Retention& retention);

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

  /// What the tree does not know of a node.
  struct Content {
    int32_t block = -1;       // any copy; -1: in the host's memory
    int32_t host_block = -1;  // -1: on the device
    int device_children = 0;  // nodes behind it that are on the device
    bool cached = false;      // nobody holds or pins it
    int64_t released = 0;     // when it was let go of last, in releases
    Retention retention;
  };

  /// The order in which leaves give way.
  struct Rank {
    int priority = 0;
    int64_t released = 0;
    auto operator<=>(const Rank&) const = default;
  };

  bool has_other_copies(int32_t block) const { return blocks_[block].next_copy != block; }
  Node insert_node(Node parent, const BlockKey& key, int32_t block);
  void add_copy(Node node, int32_t block);
  void remove_copy(int32_t block);
  void enter_cache(Node node);
  void leave_cache(Node node);
  void queue_if_leaf(Node node);
  Rank rank_of(Node node) const { return {nodes_[node].retention.priority, nodes_[node].released}; }
  void attach(Node node, int32_t block);
  void detach(Node node);
  void leave_host(Node node);
  void evict_one();
  bool make_host_room(Node node);
  void offload(Node node);
  void forget_cached(Node node);
  void forget(Node node);
  void free(int32_t block);
  void check_block(int32_t block, int holders) const;
  void check_cached(Node node) const;
  void check_host() const;
  void check_order(const IndexHeap<Rank>& leaves) const;

  PrefixTree tree_;
  std::vector<Block> blocks_;  // [num_blocks]
  int host_blocks_;
  std::vector<Content> nodes_;  // [1 + num_blocks + num_host_blocks]
  std::vector<int32_t> free_;
  std::vector<int32_t> host_free_;
  IndexHeap<Rank> leaves_;       // nodes: the cached ones on the device that nothing follows there
  IndexHeap<Rank> host_leaves_;  // nodes: the cached ones in the host's memory that nothing follows
  IndexHeap<int64_t> expiring_;  // nodes: the cached ones whose retention runs out, by the time of that
  std::vector<KvBlockCopy> copies_;
  int cached_ = 0;  // on the device
  int64_t evicted_ = 0;
  int64_t offloaded_ = 0;
  int64_t onboarded_ = 0;
  int64_t releases_ = 0;
  int64_t now_ms_ = 0;
};

}  // namespace inflight
