#include "inflight_batcher/kv_cache/prefix_tree.h"

#include <algorithm>

#include "inflight/error.h"

namespace inflight {
namespace {

/// The first place where the two differ, or the end of the shorter.
size_t mismatch(const BlockKey& a, const BlockKey& b) {
  const auto place = std::mismatch(a.tokens.begin(), a.tokens.end(), b.tokens.begin(), b.tokens.end()).first;
  const auto end = static_cast<size_t>(place - a.tokens.begin());
  const size_t with_extra_ids = std::min(end, std::max(a.extra_ids.size(), b.extra_ids.size()));
  for (size_t i = 0; i < with_extra_ids; ++i)
    if (a.extra_id(i) != b.extra_id(i)) return i;
  return end;
}

bool less(const BlockKey& a, const BlockKey& b) {
  const size_t i = mismatch(a, b);
  if (i == a.size() || i == b.size()) return a.size() < b.size();
  return a.tokens[i] != b.tokens[i] ? a.tokens[i] < b.tokens[i] : a.extra_id(i) < b.extra_id(i);
}

int common_prefix(const BlockKey& a, const BlockKey& b) { return static_cast<int>(mismatch(a, b)); }

bool is_prefix(const BlockKey& prefix, const BlockKey& key) {
  return common_prefix(prefix, key) == static_cast<int>(prefix.size());
}

}  // namespace

PrefixTree::PrefixTree(int max_nodes, int block_size)
    : block_size_(block_size), nodes_(max_nodes + 1), tokens_(size_t(max_nodes + 1) * block_size) {
  // Most nodes have one child: with its place reserved a sequence's next block enters the tree without an allocation.
  for (Item& node : nodes_) node.children.reserve(1);
  free_.reserve(max_nodes);
  for (Node node = max_nodes; node > kRoot; --node) free_.push_back(node);
}

PrefixTree::Node PrefixTree::insert(Node parent, const BlockKey& key) {
  const Node node = free_.back();
  free_.pop_back();
  Children& siblings = nodes_[parent].children;
  siblings.insert(lower_bound(parent, key), node);
  nodes_[node].parent = parent;
  nodes_[node].length = static_cast<int>(key.size());
  std::copy(key.tokens.begin(), key.tokens.end(), tokens_.begin() + size_t(node) * block_size_);
  const bool has_extra_ids = std::ranges::any_of(key.extra_ids, [](uint64_t id) { return id != 0; });
  if (has_extra_ids) nodes_[node].extra_ids.assign(key.extra_ids.begin(), key.extra_ids.end());
  return node;
}

void PrefixTree::erase(Node leaf) {
  Item& item = nodes_[leaf];
  nodes_[item.parent].children.erase(lower_bound(item.parent, key(leaf)));
  item.parent = kNone;
  item.length = 0;
  item.extra_ids.clear();
  free_.push_back(leaf);
}

PrefixTree::Node PrefixTree::find(Node parent, const BlockKey& key) const {
  const auto place = lower_bound(parent, key);
  if (place == nodes_[parent].children.end()) return kNone;
  const BlockKey found = this->key(*place);
  return found.size() == key.size() && is_prefix(found, key) ? *place : kNone;
}

PrefixTree::Node PrefixTree::find_prefix(Node parent, const BlockKey& key) const {
  // Whatever sorts between a prefix and the whole has that prefix too, and no sibling may: so it stands right before.
  const auto place = lower_bound(parent, key);
  if (place == nodes_[parent].children.begin()) return kNone;
  const Node before = *(place - 1);
  return is_prefix(this->key(before), key) ? before : kNone;
}

PrefixTree::Match PrefixTree::longest_match(Node parent, const BlockKey& key) const {
  const Children& children = nodes_[parent].children;
  const auto place = lower_bound(parent, key);
  Match best;
  const auto consider = [&](Node node) {
    const int length = common_prefix(this->key(node), key);
    if (length > best.length) best = {node, length};
  };
  if (place != children.end()) consider(*place);
  if (place != children.begin()) consider(*(place - 1));
  return best;
}

BlockKey PrefixTree::key(Node node) const {
  const Item& item = nodes_[node];
  return {{tokens_.data() + size_t(node) * block_size_, size_t(item.length)}, item.extra_ids};
}

PrefixTree::Children::const_iterator PrefixTree::lower_bound(Node parent, const BlockKey& key) const {
  const Children& children = nodes_[parent].children;
  return std::lower_bound(children.begin(), children.end(), key,
                          [this](Node node, const BlockKey& wanted) { return less(this->key(node), wanted); });
}

void PrefixTree::check_invariants() const {
  int reachable = 0;
  std::vector<Node> stack = {kRoot};
  while (!stack.empty()) {
    const Node node = stack.back();
    stack.pop_back();
    check_children(node);
    const Children& children = nodes_[node].children;
    reachable += static_cast<int>(children.size());
    stack.insert(stack.end(), children.begin(), children.end());
  }
  check(reachable == size(), ErrorCode::kInternal, "prefix tree: ", reachable, " nodes reachable, ", size(), " in use");
}

void PrefixTree::check_children(Node node) const {
  const Children& children = nodes_[node].children;
  check(children.empty() || node == kRoot || nodes_[node].length == block_size_, ErrorCode::kInternal,
        "prefix tree: node ", node, " of ", nodes_[node].length, " tokens has children, block size is ", block_size_);
  for (size_t i = 0; i < children.size(); ++i) {
    const Node child = children[i];
    check(nodes_[child].parent == node, ErrorCode::kInternal, "prefix tree: child ", child, " of ", node,
          " names parent ", nodes_[child].parent);
    check(nodes_[child].length > 0, ErrorCode::kInternal, "prefix tree: node ", child, " has no tokens");
    if (i == 0) continue;
    check(less(key(children[i - 1]), key(child)), ErrorCode::kInternal, "prefix tree: children ", children[i - 1],
          " and ", child, " of ", node, " are out of order");
    check(!is_prefix(key(children[i - 1]), key(child)), ErrorCode::kInternal, "prefix tree: child ", children[i - 1],
          " of ", node, " is a prefix of its sibling ", child);
  }
}

}  // namespace inflight
