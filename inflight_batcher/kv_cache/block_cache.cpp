#include "inflight_batcher/kv_cache/block_cache.h"

#include <utility>

#include "inflight/error.h"

namespace inflight {

BlockCache::BlockCache(int num_blocks, int block_size)
    : tree_(num_blocks, block_size),
      blocks_(num_blocks),
      nodes_(num_blocks + 1),
      leaves_(num_blocks + 1),
      expiring_(num_blocks + 1) {
  free_.reserve(num_blocks);
  for (int32_t block = num_blocks - 1; block >= 0; --block) free_.push_back(block);
}

void BlockCache::set_time(int64_t now_ms) {
  now_ms_ = now_ms;
  while (!expiring_.empty() && expiring_.key(expiring_.top()) <= now_ms) retain(expiring_.top(), Retention());
}

int32_t BlockCache::allocate() {
  if (free_.empty()) {
    forget_cached(leaves_.top());
    ++evicted_;
  }
  const int32_t block = free_.back();
  free_.pop_back();
  blocks_[block].holders = 1;
  return block;
}

void BlockCache::hold(int32_t block) {
  if (blocks_[block].holders++ == 0) leave_cache(blocks_[block].node);
}

void BlockCache::release(int32_t block, bool keep) {
  const Block& state = blocks_[block];
  if (--blocks_[block].holders > 0) return;
  if (state.node == PrefixTree::kNone) {
    free(block);
  } else if (has_other_copies(block)) {
    remove_copy(block);
    free(block);
  } else if (keep || !tree_.is_leaf(state.node)) {
    nodes_[state.node].released = ++releases_;
    enter_cache(state.node);
  } else {
    forget(block);
  }
}

BlockCache::Node BlockCache::publish(Node parent, std::span<const TokenId> tokens, int32_t block) {
  const Node node = tree_.find(parent, tokens);
  if (node == PrefixTree::kNone) return insert_node(parent, tokens, block);
  const int32_t known = nodes_[node].block;
  if (nodes_[node].cached) leave_cache(node);
  add_copy(node, block);
  if (blocks_[known].holders == 0) {
    remove_copy(known);
    free(known);
  }
  return node;
}

BlockCache::Node BlockCache::release_partial(Node parent, std::span<const TokenId> tokens, int32_t block) {
  const PrefixTree::Match match = tree_.longest_match(parent, tokens);
  Node node = match.node;
  if (match.length < static_cast<int>(tokens.size())) {
    node = insert_node(parent, tokens, block);
  } else if (nodes_[node].cached) {
    leave_cache(node);
    nodes_[node].released = ++releases_;
    enter_cache(node);
  }
  release(block, true);
  return node;
}

void BlockCache::retain(Node node, const Retention& retention) {
  const bool cached = nodes_[node].cached;
  if (cached) leave_cache(node);
  nodes_[node].retention = retention;
  if (cached) enter_cache(node);
}

void BlockCache::clear() {
  while (!leaves_.empty()) forget_cached(leaves_.top());
}

BlockCache::Node BlockCache::insert_node(Node parent, std::span<const TokenId> tokens, int32_t block) {
  const Node shorter = tree_.find_prefix(parent, tokens);
  if (shorter != PrefixTree::kNone) forget_cached(shorter);
  const Node node = tree_.insert(parent, tokens);
  nodes_[node] = {};
  nodes_[node].block = block;
  blocks_[block].node = node;
  blocks_[block].next_copy = blocks_[block].previous_copy = block;
  return node;
}

void BlockCache::add_copy(Node node, int32_t block) {
  const int32_t first = nodes_[node].block;
  const int32_t last = blocks_[first].previous_copy;
  blocks_[block].node = node;
  blocks_[block].previous_copy = last;
  blocks_[block].next_copy = first;
  blocks_[last].next_copy = block;
  blocks_[first].previous_copy = block;
}

void BlockCache::remove_copy(int32_t block) {
  Block& state = blocks_[block];
  blocks_[state.previous_copy].next_copy = state.next_copy;
  blocks_[state.next_copy].previous_copy = state.previous_copy;
  nodes_[state.node].block = state.next_copy;
  state.node = PrefixTree::kNone;
}

void BlockCache::enter_cache(Node node) {
  ++cached_;
  nodes_[node].cached = true;
  queue_if_leaf(node);
  const Retention& retention = nodes_[node].retention;
  if (retention.duration_ms) expiring_.push(node, now_ms_ + *retention.duration_ms);
}

void BlockCache::leave_cache(Node node) {
  --cached_;
  nodes_[node].cached = false;
  if (leaves_.contains(node)) leaves_.remove(node);
  if (expiring_.contains(node)) expiring_.remove(node);
}

void BlockCache::queue_if_leaf(Node node) {
  if (nodes_[node].cached && tree_.is_leaf(node))
    leaves_.push(node, {nodes_[node].retention.priority, nodes_[node].released});
}

void BlockCache::forget_cached(Node node) {
  leave_cache(node);
  forget(nodes_[node].block);
}

void BlockCache::forget(int32_t block) {
  const Node node = std::exchange(blocks_[block].node, PrefixTree::kNone);
  const Node parent = tree_.parent(node);
  nodes_[node].block = -1;
  tree_.erase(node);
  queue_if_leaf(parent);
  free(block);
}

void BlockCache::free(int32_t block) { free_.push_back(block); }

void BlockCache::check_invariants(std::span<const int> holders) const {
  tree_.check_invariants();
  std::vector<bool> is_free(blocks_.size());
  for (const int32_t block : free_) {
    check(!is_free[block], ErrorCode::kInternal, "KV block ", block, " is twice in the free list");
    is_free[block] = true;
  }
  int carried = 0, cached = 0;
  for (int32_t block = 0; block < static_cast<int32_t>(blocks_.size()); ++block) {
    const Node node = blocks_[block].node;
    const bool is_cached = node != PrefixTree::kNone && nodes_[node].cached;
    const int states = is_free[block] + (holders[block] > 0) + is_cached;
    check(states == 1, ErrorCode::kInternal, "KV block ", block, " is in ", states,
          " of the states free, held and cached, wanted one");
    check_block(block, holders[block]);
    if (is_cached) check_cached(node);
    carried += node != PrefixTree::kNone && nodes_[node].block == block;
    cached += is_cached;
  }
  check(carried == tree_.size(), ErrorCode::kInternal, "prefix tree: ", tree_.size(), " nodes, ", carried,
        " of them have a block");
  check(cached == cached_, ErrorCode::kInternal, cached, " KV blocks are cached, ", cached_, " counted");
  check_order();
}

void BlockCache::check_block(int32_t block, int holders) const {
  const Block& state = blocks_[block];
  check(state.holders == holders, ErrorCode::kInternal, "KV block ", block, " counts ", state.holders, " holders, ",
        holders, " tables name it");
  if (state.node == PrefixTree::kNone) return;
  check(holders > 0 || nodes_[state.node].cached, ErrorCode::kInternal, "KV block ", block, " is in the tree and free");
  check(holders > 0 || !has_other_copies(block), ErrorCode::kInternal, "KV block ", block,
        " is cached although another one has its content");
  check(blocks_[state.next_copy].node == state.node && blocks_[state.next_copy].previous_copy == block,
        ErrorCode::kInternal, "KV block ", block, ": broken ring of copies");
  const Node parent = tree_.parent(state.node);
  check(holders == 0 || parent == PrefixTree::kRoot || is_held(parent), ErrorCode::kInternal, "KV block ", block,
        " is held, the block before it is not");
}

void BlockCache::check_cached(Node node) const {
  const Content& content = nodes_[node];
  check(leaves_.contains(node) == tree_.is_leaf(node), ErrorCode::kInternal, "KV block ", content.block,
        " is cached and ", tree_.is_leaf(node) ? "a leaf that cannot" : "no leaf but can", " be evicted");
  check(expiring_.contains(node) == content.retention.duration_ms.has_value(), ErrorCode::kInternal, "KV block ",
        content.block, expiring_.contains(node) ? " expires without" : " does not expire after", " a duration");
  const Node parent = tree_.parent(node);
  check(parent == PrefixTree::kRoot || !nodes_[parent].cached || nodes_[parent].released > content.released,
        ErrorCode::kInternal, "KV block ", content.block, " was released after the block before it");
}

void BlockCache::check_order() const {
  for (const int32_t node : leaves_.indices()) {
    check(nodes_[node].cached, ErrorCode::kInternal, "node ", node, " can be evicted but is not cached");
    check(leaves_.key(node) == Rank{nodes_[node].retention.priority, nodes_[node].released}, ErrorCode::kInternal,
          "node ", node, " is to be evicted by an outdated rank");
    check(!(leaves_.key(node) < leaves_.key(leaves_.top())), ErrorCode::kInternal, "node ", node,
          " should be evicted first");
  }
  for (const int32_t node : expiring_.indices())
    check(nodes_[node].cached && expiring_.key(node) >= now_ms_, ErrorCode::kInternal, "node ", node,
          " has kept a retention beyond its end");
}

}  // namespace inflight
