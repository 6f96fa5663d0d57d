#include "inflight_batcher/kv_cache/kv_cache_manager.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "inflight/error.h"
#include "inflight_batcher/kv_cache/block_cache.h"

namespace inflight {
namespace {

KvCacheManager::Config checked(const KvCacheManager::Config& config) {
  check(config.num_blocks > 0, ErrorCode::kInvalidArgument, "KV cache: num_blocks is ", config.num_blocks,
        ", wanted at least 1");
  check(config.block_size > 0, ErrorCode::kInvalidArgument, "KV cache: block_size is ", config.block_size,
        ", wanted at least 1");
  check(config.num_host_blocks >= 0, ErrorCode::kInvalidArgument, "KV cache: num_host_blocks is ",
        config.num_host_blocks, ", wanted at least 0");
  return config;
}

}  // namespace

class KvCacheManager::Impl {
 public:
  using Node = PrefixTree::Node;

  explicit Impl(const Config& config)
      : config_(checked(config)), cache_(config.num_blocks, config.block_size, config.num_host_blocks) {}

  void set_time(int64_t now_ms) { cache_.set_time(now_ms); }

  bool add_sequence(SequenceId id, std::span<const TokenId> tokens, int capacity_tokens, bool reuse,
                    Admission* admission, PolicyPtr policy) {
    check(!sequences_.contains(id), ErrorCode::kInternal, "KV cache: sequence ", id, " exists already");
    if (count_needed_blocks(tokens, capacity_tokens, reuse, policy.get()) > cache_.available()) return false;
    Sequence& sequence = insert(id);
    sequence.policy = std::move(policy);
    const BlockKey reusable = reusable_part(tokens, capacity_tokens, reuse, sequence.policy.get());
    onboarding_.clear();
    const Node last = match_blocks(reusable, [&](Node node) { take(sequence, node); });
    const int matched = sequence.published + static_cast<int>(onboarding_.size());
    PrefixTree::Match partial = match_partial(matched, last, reusable);
    if (partial.length > 0 && !hold_source(partial.node, blocks_for(capacity_tokens) - sequence.published))
      partial = {};
    *admission = {};
    admission->reused_blocks = matched + (partial.length > 0);
    admission->reused_tokens = matched * config_.block_size + partial.length;
    admission->new_blocks = blocks_for(capacity_tokens) - matched;
    for (const Node node : onboarding_) append(sequence, node, cache_.onboard(node));
    allocate(sequence, capacity_tokens);
    if (partial.length > 0) copy_source(partial, sequence.table[matched]);
    reused_blocks_ += admission->reused_blocks;
    return true;
  }

  bool fork(SequenceId parent_id, SequenceId child_id, int num_tokens, int capacity_tokens) {
    check(!sequences_.contains(child_id), ErrorCode::kInternal, "KV cache: sequence ", child_id, " exists already");
    check_fork(parent_id, num_tokens, capacity_tokens);
    const int shared = num_tokens / config_.block_size;
    if (blocks_for(capacity_tokens) - shared > cache_.available()) return false;
    Sequence& child = insert(child_id);
    const Sequence& parent = find(parent_id);
    child.table.assign(parent.table.begin(), parent.table.begin() + shared);
    for (const int32_t block : child.table) cache_.hold(block);
    child.published = parent.published;
    child.node = parent.node;
    child.tail = parent.tail;
    child.policy = parent.policy;
    allocate(child, capacity_tokens);
    const int rest = num_tokens - shared * config_.block_size;
    if (rest > 0) cache_.copies().push_back({parent.table[shared], child.table[shared], rest});
    return true;
  }

  bool extend(SequenceId id, int capacity_tokens) {
    Sequence& sequence = find(id);
    const int missing = blocks_for(capacity_tokens) - static_cast<int>(sequence.table.size());
    if (missing > cache_.available()) return false;
    allocate(sequence, capacity_tokens);
    return true;
  }

  void mark_computed(SequenceId id, std::span<const TokenId> tokens) {
    Sequence& sequence = find(id);
    const size_t block_size = config_.block_size;
    size_t known = sequence.published * block_size + sequence.tail.size();
    check(tokens.size() >= known && tokens.size() <= sequence.table.size() * block_size, ErrorCode::kInternal,
          "KV cache: sequence ", id, " computed ", tokens.size(), " tokens, wanted at least ", known, " and at most ",
          sequence.table.size() * block_size);
    if (!config_.enable_reuse) return;
    if (sequence.policy) tokens = tokens.first(std::min(tokens.size(), size_t(sequence.policy->shareable_tokens)));
    while (known < tokens.size()) {
      const size_t count = std::min(block_size - sequence.tail.size(), tokens.size() - known);
      const auto first = tokens.begin() + known;
      sequence.tail.insert(sequence.tail.end(), first, first + count);
      known += count;
      if (sequence.tail.size() == block_size) publish_tail(sequence);
    }
  }

  void remove_sequence(SequenceId id, bool keep) {
    Sequence& sequence = find(id);
    if (keep && config_.enable_partial_reuse && !sequence.tail.empty()) {
      release_behind(sequence, sequence.published + 1, keep);
      const Node node = cache_.release_partial(sequence.node, tail_key(sequence), sequence.table.back());
      retain(sequence, node, sequence.published);
      sequence.table.pop_back();
    }
    release_behind(sequence, 0, keep);
    sequence.policy.reset();
    spare_.push_back(sequences_.extract(id));
  }

  void take_copies(std::vector<KvBlockCopy>& copies) {
    copies.insert(copies.end(), cache_.copies().begin(), cache_.copies().end());
    cache_.copies().clear();
  }

  std::span<const int32_t> block_table(SequenceId id) const { return find(id).table; }

  int blocks_for(int capacity_tokens) const { return (capacity_tokens + config_.block_size - 1) / config_.block_size; }

  int count_reusable_blocks(std::span<const TokenId> tokens, const KvPolicy* policy) const {
    int blocks = 0;
    match_blocks(reusable_part(tokens, static_cast<int>(tokens.size()), true, policy), [&](Node) { ++blocks; });
    return blocks;
  }

  int count_needed_blocks(std::span<const TokenId> tokens, int capacity_tokens, bool reuse,
                          const KvPolicy* policy) const {
    int needed = blocks_for(capacity_tokens);
    match_blocks(reusable_part(tokens, capacity_tokens, reuse, policy),
                 [&](Node node) { needed -= cache_.is_held(node); });
    return needed;
  }

  void clear_cache() { cache_.clear(); }

  Stats stats() const {
    Stats stats;
    stats.max_blocks = config_.num_blocks;
    stats.free_blocks = cache_.available();
    stats.used_blocks = config_.num_blocks - cache_.available();
    stats.cached_blocks = cache_.cached();
    stats.reused_blocks = reused_blocks_;
    stats.evicted_blocks = cache_.evicted();
    stats.max_host_blocks = config_.num_host_blocks;
    stats.used_host_blocks = cache_.host_used();
    stats.offloaded_blocks = cache_.offloaded();
    stats.onboarded_blocks = cache_.onboarded();
    return stats;
  }

  const Config& config() const { return config_; }

  void check_invariants() const {
    std::vector<int> holders(config_.num_blocks);
    for (const auto& [id, sequence] : sequences_) {
      for (const int32_t block : sequence.table) ++holders[block];
    }
    for (const auto& [id, sequence] : sequences_) check_path(id, sequence, holders);
    cache_.check_invariants(holders);
  }

 private:
  struct Sequence {
    std::vector<int32_t> table;  // leading `published` blocks are in the tree, one below the other
    int published = 0;
    Node node = PrefixTree::kRoot;  // of the last published block
    std::vector<TokenId> tail;      // computed tokens behind the published blocks, fewer than a block
    PolicyPtr policy;               // null: all by default
  };
  using Sequences = std::unordered_map<SequenceId, Sequence>;

  const Sequence& find(SequenceId id) const {
    const auto found = sequences_.find(id);
    check(found != sequences_.end(), ErrorCode::kInternal, "KV cache: no sequence ", id);
    return found->second;
  }

  Sequence& find(SequenceId id) { return const_cast<Sequence&>(std::as_const(*this).find(id)); }

  /// A fresh sequence in the memory of an ended one, where there is one.
  Sequence& insert(SequenceId id) {
    if (spare_.empty()) {
      Sequence& sequence = sequences_[id];
      sequence.tail.reserve(config_.block_size);
      return sequence;
    }
    Sequences::node_type item = std::move(spare_.back());
    spare_.pop_back();
    item.key() = id;
    item.mapped().published = 0;
    item.mapped().node = PrefixTree::kRoot;
    item.mapped().table.clear();
    item.mapped().tail.clear();
    return sequences_.insert(std::move(item)).position->second;
  }

  /// The leading tokens that may come from the cache: not the last one, whose logits are wanted.
  BlockKey reusable_part(std::span<const TokenId> tokens, int capacity_tokens, bool reuse,
                         const KvPolicy* policy) const {
    if (!reuse || !config_.enable_reuse || tokens.empty()) return {};
    const size_t count = std::min(tokens.size() - 1, size_t(capacity_tokens));
    if (!policy) return tokens.first(count);
    return {tokens.first(std::min(count, size_t(policy->shareable_tokens))), policy->extra_ids};
  }

  /// Visits the nodes of the whole blocks known of `key`, in order; returns the last one.
  template <typename Visit>
  Node match_blocks(BlockKey key, Visit visit) const {
    Node node = PrefixTree::kRoot;
    for (size_t size = config_.block_size; key.size() >= size; key = key.from(size)) {
      const Node child = cache_.tree().find(node, key.first(size));
      if (child == PrefixTree::kNone || !is_reachable(child)) break;
      visit(child);
      node = child;
    }
    return node;
  }

  bool is_reachable(Node node) const { return config_.onboard_blocks || !cache_.is_on_host(node); }

  PrefixTree::Match match_partial(int matched, Node last, const BlockKey& reusable) const {
    const size_t shared = size_t(matched) * config_.block_size;
    if (!config_.enable_partial_reuse || shared == reusable.size()) return {};
    const size_t rest = std::min(reusable.size() - shared, size_t(config_.block_size));
    const PrefixTree::Match match = cache_.tree().longest_match(last, reusable.subkey(shared, rest));
    return match.length > 0 && is_reachable(match.node) ? match : PrefixTree::Match();
  }

  /// A matched block is the sequence's too; in the host's memory it stays until it is brought back.
  void take(Sequence& sequence, Node node) {
    if (cache_.is_on_host(node)) {
      cache_.pin(node);
      onboarding_.push_back(node);
      return;
    }
    cache_.hold(cache_.block_of(node));
    append(sequence, node, cache_.block_of(node));
  }

  static void append(Sequence& sequence, Node node, int32_t block) {
    sequence.table.push_back(block);
    sequence.node = node;
    ++sequence.published;
  }

  void allocate(Sequence& sequence, int capacity_tokens) {
    const size_t wanted = blocks_for(capacity_tokens);
    while (sequence.table.size() < wanted) sequence.table.push_back(cache_.allocate());
  }

  /// Keeps the partially matched block while `needed` others are allocated, so that it is not evicted for the very
  /// block that wants its content. False, and it is given up, where only that would do.
  bool hold_source(Node node, int needed) {
    if (cache_.is_on_host(node)) {
      cache_.pin(node);
      return true;
    }
    cache_.hold(cache_.block_of(node));
    if (needed <= cache_.available()) return true;
    cache_.release(cache_.block_of(node), true);
    return false;
  }

  void copy_source(PrefixTree::Match partial, int32_t destination) {
    if (cache_.is_on_host(partial.node)) {
      const int32_t source = cache_.host_block_of(partial.node);
      cache_.copies().push_back({source, destination, partial.length, KvMemory::kHost, KvMemory::kDevice});
      cache_.unpin(partial.node);
      return;
    }
    const int32_t source = cache_.block_of(partial.node);
    cache_.copies().push_back({source, destination, partial.length});
    cache_.release(source, true);
  }

  BlockKey tail_key(const Sequence& sequence) const {
    return BlockKey(sequence.tail, sequence.policy
                                       ? sequence.policy->extra_ids_from(sequence.published * config_.block_size)
                                       : std::span<const uint64_t>());
  }

  void publish_tail(Sequence& sequence) {
    sequence.node = cache_.publish(sequence.node, tail_key(sequence), sequence.table[sequence.published]);
    ++sequence.published;
    sequence.tail.clear();
  }

  void release_behind(Sequence& sequence, size_t count, bool keep) {
    while (sequence.table.size() > count) {
      const Node node = cache_.node_of(sequence.table.back());
      if (node != PrefixTree::kNone) retain(sequence, node, static_cast<int>(sequence.table.size()) - 1);
      cache_.release(sequence.table.back(), keep);
      sequence.table.pop_back();
    }
  }

  /// What the sequence's policy says of its block `index`, whose content is `node`'s.
  void retain(const Sequence& sequence, Node node, int index) {
    if (!sequence.policy || sequence.policy->retention.is_default()) return;
    const int begin = index * config_.block_size;
    const int tokens = static_cast<int>(cache_.tree().key(node).size());
    cache_.retain(node, sequence.policy->retention_of(begin, begin + tokens));
  }

  void check_fork(SequenceId id, int num_tokens, int capacity_tokens) const {
    const Sequence& parent = find(id);
    const int known = parent.published * config_.block_size + static_cast<int>(parent.tail.size());
    const int held = static_cast<int>(parent.table.size()) * config_.block_size;
    check(num_tokens >= known && num_tokens <= held && capacity_tokens >= num_tokens, ErrorCode::kInternal,
          "KV cache: a fork of sequence ", id, " takes ", num_tokens, " tokens and room for ", capacity_tokens,
          ", wanted at least ", known, ", at most ", held, " and room for them");
  }

  void check_path(SequenceId id, const Sequence& sequence, const std::vector<int>& holders) const {
    Node parent = PrefixTree::kRoot;
    for (size_t i = 0; i < sequence.table.size(); ++i) {
      const Node node = cache_.node_of(sequence.table[i]);
      const bool in_tree = static_cast<int>(i) < sequence.published;
      if (!in_tree && holders[sequence.table[i]] > 1) continue;  // another one of the fork may have published it
      check((node != PrefixTree::kNone) == in_tree, ErrorCode::kInternal, "KV cache: block ", i, " of sequence ", id,
            in_tree ? " is missing in the tree" : " is in the tree before it is full");
      if (!in_tree) continue;
      check(cache_.tree().parent(node) == parent, ErrorCode::kInternal, "KV cache: block ", i, " of sequence ", id,
            " does not follow the one before it in the tree");
      parent = node;
    }
  }

  Config config_;
  BlockCache cache_;
  Sequences sequences_;
  std::vector<Sequences::node_type> spare_;
  std::vector<Node> onboarding_;  // of the sequence being added: matched behind its table, in the host's memory
  int64_t reused_blocks_ = 0;
};

KvCacheManager::KvCacheManager(const Config& config) : impl_(std::make_unique<Impl>(config)) {}
KvCacheManager::~KvCacheManager() = default;

void KvCacheManager::set_time(int64_t now_ms) { impl_->set_time(now_ms); }

bool KvCacheManager::add_sequence(SequenceId id, std::span<const TokenId> tokens, int capacity_tokens, bool reuse,
                                  Admission* admission, PolicyPtr policy) {
  return impl_->add_sequence(id, tokens, capacity_tokens, reuse, admission, std::move(policy));
}

bool KvCacheManager::fork(SequenceId parent, SequenceId child, int num_tokens, int capacity_tokens) {
  return impl_->fork(parent, child, num_tokens, capacity_tokens);
}

bool KvCacheManager::extend(SequenceId id, int capacity_tokens) { return impl_->extend(id, capacity_tokens); }

void KvCacheManager::mark_computed(SequenceId id, std::span<const TokenId> tokens) { impl_->mark_computed(id, tokens); }

void KvCacheManager::remove_sequence(SequenceId id, bool keep) { impl_->remove_sequence(id, keep); }

void KvCacheManager::take_copies(std::vector<KvBlockCopy>& copies) { impl_->take_copies(copies); }

std::span<const int32_t> KvCacheManager::block_table(SequenceId id) const { return impl_->block_table(id); }

int KvCacheManager::blocks_for(int capacity_tokens) const { return impl_->blocks_for(capacity_tokens); }

int KvCacheManager::count_reusable_blocks(std::span<const TokenId> tokens, const KvPolicy* policy) const {
  return impl_->count_reusable_blocks(tokens, policy);
}

int KvCacheManager::count_needed_blocks(std::span<const TokenId> tokens, int capacity_tokens, bool reuse,
                                        const KvPolicy* policy) const {
  return impl_->count_needed_blocks(tokens, capacity_tokens, reuse, policy);
}

void KvCacheManager::clear_cache() { impl_->clear_cache(); }

void KvCacheManager::reset() { impl_ = std::make_unique<Impl>(impl_->config()); }

KvCacheManager::Stats KvCacheManager::stats() const { return impl_->stats(); }

const KvCacheManager::Config& KvCacheManager::config() const { return impl_->config(); }

void KvCacheManager::check_invariants() const { impl_->check_invariants(); }

}  // namespace inflight
