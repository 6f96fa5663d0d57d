#include "inflight_batcher/kv_cache/prefix_tree.h"

#include <algorithm>

#include "inflight/error.h"

namespace inflight {
namespace {

bool less(std::span<const TokenId> a, std::span<const TokenId> b) {
  return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end());
}

int common_prefix(std::span<const TokenId> a, std::span<const TokenId> b) {
  return static_cast<int>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
}

bool is_prefix(std::span<const TokenId> prefix, std::span<const TokenId> tokens) {
  return common_prefix(prefix, tokens) == static_cast<int>(prefix.size());
}

}  // namespace

PrefixTree::PrefixTree(int max_nodes, int block_size)
    : block_size_(block_size), nodes_(max_nodes + 1), tokens_(size_t(max_nodes + 1) * block_size) {
  // Most nodes have one child: with its place reserved a sequence's next block enters the tree without an allocation.
  for (Item& node : nodes_) node.children.reserve(1);
  free_.reserve(max_nodes);
  for (Node node = max_nodes; node > kRoot; --node) free_.push_back(node);
}

PrefixTree::Node PrefixTree::insert(Node parent, std::span<const TokenId> tokens) {
  const Node node = free_.back();
  free_.pop_back();
  Children& siblings = nodes_[parent].children;
  siblings.insert(lower_bound(parent, tokens), node);
  nodes_[node].parent = parent;
  nodes_[node].length = static_cast<int>(tokens.size());
  std::copy(tokens.begin(), tokens.end(), tokens_.begin() + size_t(node) * block_size_);
  return node;
}

void PrefixTree::erase(Node leaf) {
  Item& item = nodes_[leaf];
  nodes_[item.parent].children.erase(lower_bound(item.parent, tokens(leaf)));
  item.parent = kNone;
  item.length = 0;
  free_.push_back(leaf);
}

PrefixTree::Node PrefixTree::find(Node parent, std::span<const TokenId> tokens) const {
  const auto place = lower_bound(parent, tokens);
  if (place == nodes_[parent].children.end()) return kNone;
  return std::ranges::equal(this->tokens(*place), tokens) ? *place : kNone;
}

PrefixTree::Node PrefixTree::find_prefix(Node parent, std::span<const TokenId> tokens) const {
  // Whatever sorts between a prefix and the whole has that prefix too, and no sibling may: so it stands right before.
  const auto place = lower_bound(parent, tokens);
  if (place == nodes_[parent].children.begin()) return kNone;
  const Node before = *(place - 1);
  return is_prefix(this->tokens(before), tokens) ? before : kNone;
}

PrefixTree::Match PrefixTree::longest_match(Node parent, std::span<const TokenId> tokens) const {
  const Children& children = nodes_[parent].children;
  const auto place = lower_bound(parent, tokens);
  Match best;
  const auto consider = [&](Node node) {
    const int length = common_prefix(this->tokens(node), tokens);
    if (length > best.length) best = {node, length};
  };
  if (place != children.end()) consider(*place);
  if (place != children.begin()) consider(*(place - 1));
  return best;
}

std::span<const TokenId> PrefixTree::tokens(Node node) const {
  return {tokens_.data() + size_t(node) * block_size_, size_t(nodes_[node].length)};
}

PrefixTree::Children::const_iterator PrefixTree::lower_bound(Node parent, std::span<const TokenId> tokens) const {
  const Children& children = nodes_[parent].children;
  return std::lower_bound(children.begin(), children.end(), tokens, [this](Node node, std::span<const TokenId> wanted) {
    return less(this->tokens(node), wanted);
  });
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
    check(less(tokens(children[i - 1]), tokens(child)), ErrorCode::kInternal, "prefix tree: children ", children[i - 1],
          " and ", child, " of ", node, " are out of order");
    check(!is_prefix(tokens(children[i - 1]), tokens(child)), ErrorCode::kInternal, "prefix tree: child ",
          children[i - 1], " of ", node, " is a prefix of its sibling ", child);
  }
}

}  // namespace inflight
