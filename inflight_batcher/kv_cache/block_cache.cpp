#include "inflight_batcher/kv_cache/block_cache.h"

#include "inflight/error.h"

namespace inflight {

BlockCache::BlockCache(int num_blocks, int block_size)
    : tree_(num_blocks, block_size), blocks_(num_blocks), block_of_node_(num_blocks + 1, -1), lru_(num_blocks) {
  free_.reserve(num_blocks);
  for (int32_t block = num_blocks - 1; block >= 0; --block) free_.push_back(block);
}

int32_t BlockCache::allocate() {
  if (free_.empty()) {
    forget_front();
    ++evicted_;
  }
  const int32_t block = free_.back();
  free_.pop_back();
  blocks_[block].holders = 1;
  return block;
}

void BlockCache::hold(int32_t block) {
  if (blocks_[block].holders++ == 0) lru_.remove(block);
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
    lru_.push_back(block);
  } else {
    forget(block);
  }
}

BlockCache::Node BlockCache::publish(Node parent, std::span<const TokenId> tokens, int32_t block) {
  const Node node = tree_.find(parent, tokens);
  if (node == PrefixTree::kNone) return insert_node(parent, tokens, block);
  const int32_t known = block_of_node_[node];
  add_copy(node, block);
  if (blocks_[known].holders == 0) {
    lru_.remove(known);
    remove_copy(known);
    free(known);
  }
  return node;
}

void BlockCache::release_partial(Node parent, std::span<const TokenId> tokens, int32_t block) {
  const PrefixTree::Match match = tree_.longest_match(parent, tokens);
  if (match.length < static_cast<int>(tokens.size())) {
    insert_node(parent, tokens, block);
  } else if (!is_held(match.node)) {
    lru_.remove(block_of_node_[match.node]);
    lru_.push_back(block_of_node_[match.node]);
  }
  release(block, true);
}

void BlockCache::clear() {
  while (!lru_.empty()) forget_front();
}

BlockCache::Node BlockCache::insert_node(Node parent, std::span<const TokenId> tokens, int32_t block) {
  const Node shorter = tree_.find_prefix(parent, tokens);
  if (shorter != PrefixTree::kNone) {
    lru_.remove(block_of_node_[shorter]);
    forget(block_of_node_[shorter]);
  }
  const Node node = tree_.insert(parent, tokens);
  block_of_node_[node] = block;
  blocks_[block].node = node;
  blocks_[block].next_copy = blocks_[block].previous_copy = block;
  return node;
}

void BlockCache::add_copy(Node node, int32_t block) {
  const int32_t first = block_of_node_[node];
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
  block_of_node_[state.node] = state.next_copy;
  state.node = PrefixTree::kNone;
}

void BlockCache::forget_front() {
  const int32_t block = lru_.front();
  lru_.remove(block);
  forget(block);
}

void BlockCache::forget(int32_t block) {
  block_of_node_[blocks_[block].node] = -1;
  tree_.erase(blocks_[block].node);
  blocks_[block].node = PrefixTree::kNone;
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
  int carried = 0;
  for (int32_t block = 0; block < static_cast<int32_t>(blocks_.size()); ++block) {
    const int states = is_free[block] + (holders[block] > 0) + lru_.contains(block);
    check(states == 1, ErrorCode::kInternal, "KV block ", block, " is in ", states,
          " of the states free, held and cached, wanted one");
    check_block(block, holders[block]);
    const Node node = blocks_[block].node;
    carried += node != PrefixTree::kNone && block_of_node_[node] == block;
  }
  check(carried == tree_.size(), ErrorCode::kInternal, "prefix tree: ", tree_.size(), " nodes, ", carried,
        " of them have a block");
  check_lru_order();
}

void BlockCache::check_block(int32_t block, int holders) const {
  const Block& state = blocks_[block];
  check(state.holders == holders, ErrorCode::kInternal, "KV block ", block, " counts ", state.holders, " holders, ",
        holders, " tables name it");
  if (state.node == PrefixTree::kNone) {
    check(!lru_.contains(block), ErrorCode::kInternal, "KV block ", block, " is cached but not in the tree");
    return;
  }
  check(holders > 0 || lru_.contains(block), ErrorCode::kInternal, "KV block ", block, " is in the tree and free");
  check(holders > 0 || !has_other_copies(block), ErrorCode::kInternal, "KV block ", block,
        " is cached although another one has its content");
  check(blocks_[state.next_copy].node == state.node && blocks_[state.next_copy].previous_copy == block,
        ErrorCode::kInternal, "KV block ", block, ": broken ring of copies");
  const Node parent = tree_.parent(state.node);
  check(holders == 0 || parent == PrefixTree::kRoot || is_held(parent), ErrorCode::kInternal, "KV block ", block,
        " is held, the block before it is not");
}

void BlockCache::check_lru_order() const {
  std::vector<bool> passed(blocks_.size());
  for (int32_t block = lru_.front(); block != lru_.end(); block = lru_.next(block)) {
    passed[block] = true;
    const Node parent = tree_.parent(blocks_[block].node);
    check(parent == PrefixTree::kRoot || !passed[block_of_node_[parent]], ErrorCode::kInternal, "KV block ", block,
          " would be evicted after the block before it");
  }
}

}  // namespace inflight
