#include "inflight_batcher/kv_cache/block_cache.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "inflight/error.h"

namespace inflight {

namespace {

std::vector<int32_t> all_free(int count) {
  std::vector<int32_t> blocks(count);
  std::iota(blocks.rbegin(), blocks.rend(), 0);  // the first is given first
  return blocks;
}

}  // namespace

BlockCache::BlockCache(int num_blocks, int block_size, int num_host_blocks)
    : tree_(num_blocks + num_host_blocks, block_size),
      blocks_(num_blocks),
      host_blocks_(num_host_blocks),
      nodes_(num_blocks + num_host_blocks + 1),
      free_(all_free(num_blocks)),
      host_free_(all_free(num_host_blocks)),
      leaves_(static_cast<int>(nodes_.size())),
      host_leaves_(static_cast<int>(nodes_.size())),
      expiring_(static_cast<int>(nodes_.size())) {}

void BlockCache::set_time(int64_t now_ms) {
  now_ms_ = now_ms;
  while (!expiring_.empty() && expiring_.key(expiring_.top()) <= now_ms) retain(expiring_.top(), Retention());
}

int32_t BlockCache::allocate() {
  if (free_.empty()) evict_one();
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
    forget(state.node);
  }
}

BlockCache::Node BlockCache::publish(Node parent, const BlockKey& key, int32_t block) {
  const Node node = tree_.find(parent, key);
  if (node == PrefixTree::kNone) return insert_node(parent, key, block);
  if (blocks_[block].node == node) return node;  // another holder of the same block was first
  if (nodes_[node].cached) leave_cache(node);
  if (is_on_host(node)) {
    leave_host(node);
    attach(node, block);
    return node;
  }
  const int32_t known = nodes_[node].block;
  add_copy(node, block);
  if (blocks_[known].holders == 0) {
    remove_copy(known);
    free(known);
  }
  return node;
}

BlockCache::Node BlockCache::release_partial(Node parent, const BlockKey& key, int32_t block) {
  const PrefixTree::Match match = tree_.longest_match(parent, key);
  Node node = match.node;
  if (match.length < static_cast<int>(key.size())) {
    node = insert_node(parent, key, block);
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
  while (!host_leaves_.empty()) forget_cached(host_leaves_.top());
  while (!leaves_.empty()) forget_cached(leaves_.top());
}

void BlockCache::unpin(Node node) {
  nodes_[node].released = ++releases_;
  enter_cache(node);
}

int32_t BlockCache::onboard(Node node) {
  const int32_t block = allocate();
  copies_.push_back(
      {nodes_[node].host_block, block, static_cast<int>(tree_.key(node).size()), KvMemory::kHost, KvMemory::kDevice});
  leave_host(node);
  attach(node, block);
  ++onboarded_;
  return block;
}

BlockCache::Node BlockCache::insert_node(Node parent, const BlockKey& key, int32_t block) {
  const Node shorter = tree_.find_prefix(parent, key);
  if (shorter != PrefixTree::kNone) forget_cached(shorter);
  const Node node = tree_.insert(parent, key);
  nodes_[node] = {};
  attach(node, block);
  return node;
}

/// The block now carries the node's content, alone.
void BlockCache::attach(Node node, int32_t block) {
  nodes_[node].block = block;
  blocks_[block].node = node;
  blocks_[block].next_copy = blocks_[block].previous_copy = block;
  ++nodes_[tree_.parent(node)].device_children;
}

/// The node's only block is free.
void BlockCache::detach(Node node) {
  const int32_t block = std::exchange(nodes_[node].block, -1);
  blocks_[block].node = PrefixTree::kNone;
  --nodes_[tree_.parent(node)].device_children;
  free(block);
}

void BlockCache::leave_host(Node node) { host_free_.push_back(std::exchange(nodes_[node].host_block, -1)); }

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
  cached_ += !is_on_host(node);
  nodes_[node].cached = true;
  queue_if_leaf(node);
  const Retention& retention = nodes_[node].retention;
  if (retention.duration_ms) expiring_.push(node, now_ms_ + std::min(*retention.duration_ms, INT64_MAX - now_ms_));
}

void BlockCache::leave_cache(Node node) {
  cached_ -= !is_on_host(node);
  nodes_[node].cached = false;
  for (auto* leaves : {&leaves_, &host_leaves_})
    if (leaves->contains(node)) leaves->remove(node);
  if (expiring_.contains(node)) expiring_.remove(node);
}

void BlockCache::queue_if_leaf(Node node) {
  const bool on_host = is_on_host(node);
  const bool is_leaf = on_host ? tree_.is_leaf(node) : nodes_[node].device_children == 0;
  IndexHeap<Rank>& leaves = on_host ? host_leaves_ : leaves_;
  if (nodes_[node].cached && is_leaf && !leaves.contains(node)) leaves.push(node, rank_of(node));
}

void BlockCache::evict_one() {
  const Node node = leaves_.top();
  if (make_host_room(node)) return offload(node);
  forget_cached(node);
  ++evicted_;
}

/// Whether there is a free block in the host's memory for the node's content, if need be instead of what counts less.
/// What follows the node is all in the host's memory and nobody pins it: so a node that is no leaf finds a block.
bool BlockCache::make_host_room(Node node) {
  if (!host_free_.empty()) return true;
  if (host_leaves_.empty()) return false;
  const Node least = host_leaves_.top();
  if (tree_.is_leaf(node) && rank_of(node) < host_leaves_.key(least)) return false;
  forget_cached(least);
  ++evicted_;
  return true;
}

void BlockCache::offload(Node node) {
  const int32_t host_block = host_free_.back();
  host_free_.pop_back();
  copies_.push_back(
      {nodes_[node].block, host_block, static_cast<int>(tree_.key(node).size()), KvMemory::kDevice, KvMemory::kHost});
  leaves_.remove(node);
  --cached_;
  detach(node);
  nodes_[node].host_block = host_block;
  queue_if_leaf(node);
  queue_if_leaf(tree_.parent(node));
  ++offloaded_;
}

void BlockCache::forget_cached(Node node) {
  leave_cache(node);
  forget(node);
}

void BlockCache::forget(Node node) {
  const Node parent = tree_.parent(node);
  is_on_host(node) ? leave_host(node) : detach(node);
  tree_.erase(node);
  queue_if_leaf(parent);
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
  check(carried + host_used() == tree_.size(), ErrorCode::kInternal, "prefix tree: ", tree_.size(), " nodes, ", carried,
        " of them have a block, ", host_used(), " one of the host's");
  check(cached == cached_, ErrorCode::kInternal, cached, " KV blocks are cached, ", cached_, " counted");
  check_host();
  check_order(leaves_);
  check_order(host_leaves_);
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
  const bool is_leaf = is_on_host(node) ? tree_.is_leaf(node) : content.device_children == 0;
  check((is_on_host(node) ? host_leaves_ : leaves_).contains(node) == is_leaf, ErrorCode::kInternal, "node ", node,
        " is cached and ", is_leaf ? "a leaf that cannot" : "no leaf but can", " be evicted");
  check(expiring_.contains(node) == content.retention.duration_ms.has_value(), ErrorCode::kInternal, "node ", node,
        expiring_.contains(node) ? " expires without" : " does not expire after", " a duration");
  const Node parent = tree_.parent(node);
  check(parent == PrefixTree::kRoot || !nodes_[parent].cached || nodes_[parent].released > content.released,
        ErrorCode::kInternal, "node ", node, " was released after the one before it");
}

void BlockCache::check_host() const {
  std::vector<bool> taken(host_blocks_);
  for (const int32_t block : host_free_) taken[block] = true;
  std::vector<int> device_children(nodes_.size());
  for (Node node = 1; node < static_cast<Node>(nodes_.size()); ++node) {
    const Content& content = nodes_[node];
    if (content.block >= 0) ++device_children[tree_.parent(node)];
    if (content.host_block < 0) continue;
    check(content.block < 0 && content.cached && !taken[content.host_block], ErrorCode::kInternal, "host block ",
          content.host_block, " of node ", node, " is free, pinned or there twice, or the node is on the device too");
    taken[content.host_block] = true;
    check_cached(node);
  }
  check(std::ranges::count(taken, true) == host_blocks_, ErrorCode::kInternal, "host blocks are lost");
  for (Node node = 0; node < static_cast<Node>(nodes_.size()); ++node) {
    check(device_children[node] == nodes_[node].device_children, ErrorCode::kInternal, "node ", node, " counts ",
          nodes_[node].device_children, " children on the device, there are ", device_children[node]);
    check(device_children[node] == 0 || !is_on_host(node), ErrorCode::kInternal, "node ", node,
          " is in the host's memory, what follows it is not");
  }
}

void BlockCache::check_order(const IndexHeap<Rank>& leaves) const {
  for (const int32_t node : leaves.indices()) {
    check(nodes_[node].cached, ErrorCode::kInternal, "node ", node, " can be evicted but is not cached");
    check(leaves.key(node) == rank_of(node), ErrorCode::kInternal, "node ", node,
          " is to be evicted by an outdated rank");
    check(!(leaves.key(node) < leaves.key(leaves.top())), ErrorCode::kInternal, "node ", node,
          " should be evicted first");
  }
  for (const int32_t node : expiring_.indices())
    check(nodes_[node].cached && expiring_.key(node) >= now_ms_, ErrorCode::kInternal, "node ", node,
          " has kept a retention beyond its end");
}

}  // namespace inflight
