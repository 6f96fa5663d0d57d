#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "inflight/ops/attention.h"
#include "inflight_batcher/api/request.h"
#include "inflight_batcher/kv_cache/kv_policy.h"

namespace inflight {

using SequenceId = uint64_t;

/// Which KV blocks belong to which sequence, and which finished blocks can be found again by their tokens.
/// Host data only: it names blocks, it never touches their memory. Not thread-safe (one engine thread owns it).
///
/// A block is free (nobody's, content worthless), cached (in the prefix tree, no sequence holds it: evictable,
/// leaves first, the lowest priority first, in it the least recently released) or held (by one or more sequences;
/// shared blocks are full and in the tree). Every cached block is evictable: what follows it in the tree is cached too.
/// Reuse compares tokens, never only hashes.
///
/// Sequences that compute the same content side by side keep a block each; when all but one copy have lost their
/// holders, one remains. A sequence's table only grows at its end while it lives.
///
/// With a host pool a cached block may lie in the host's memory, and the manager says which blocks the device has to
/// copy there and back (take_copies).
class KvCacheManager {
 public:
  using PolicyPtr = std::shared_ptr<const KvPolicy>;

  struct Config {
    int num_blocks = 0;
    int block_size = 32;
    bool enable_reuse = true;
    bool enable_partial_reuse = true;
    int num_host_blocks = 0;     // where content goes that would be evicted
    bool onboard_blocks = true;  // and comes back from when a prompt wants it; false: prompts do not find it
  };

  /// What a new sequence found in the prefix tree.
  struct Admission {
    int reused_tokens = 0;  // already in the cache: computing starts behind them
    int reused_blocks = 0;  // whole shared blocks plus the partially copied one
    int new_blocks = 0;     // allocated for the sequence alone
  };

  struct Stats {
    int max_blocks = 0;
    int free_blocks = 0;         // free or cached: what an allocation may take
    int used_blocks = 0;         // held
    int cached_blocks = 0;       // in the tree and not held
    int64_t reused_blocks = 0;   // counter
    int64_t evicted_blocks = 0;  // counter
    int max_host_blocks = 0;
    int used_host_blocks = 0;      // with content
    int64_t offloaded_blocks = 0;  // counters of what moved to the host's memory and back
    int64_t onboarded_blocks = 0;
  };

  explicit KvCacheManager(const Config& config);
  ~KvCacheManager();

  /// The time that retention durations count in: milliseconds from any origin, never backwards. A time not told is 0.
  void set_time(int64_t now_ms);

  /// Starts a sequence: matches the longest known prefix of `tokens`, at most tokens.size() - 1 of them (the last one
  /// must be computed for its logits) and at most `capacity_tokens`, and allocates blocks up to `capacity_tokens`.
  /// Whole blocks are shared, after they have been brought back where they are in the host's memory; the leading part
  /// of one more is copied, unless its own source is the last block to be had. Returns false and changes nothing when
  /// the blocks do not suffice. `reuse` false: match nothing (what the sequence computes is still found by others).
  /// `policy` says what tells its tokens from others, and how hard its blocks are kept when it lets go of them; null:
  /// the tokens alone, and blocks keep what earlier sequences said.
  /// Throws Error(kInternal) when `id` is known already.
  bool add_sequence(SequenceId id, std::span<const TokenId> tokens, int capacity_tokens, bool reuse,
                    Admission* admission, PolicyPtr policy = nullptr);

  /// Starts `child` on the first `num_tokens` tokens of `parent`, no fewer than mark_computed was told of: the whole
  /// blocks among them are shared, what the parent has of one more is copied (take_copies). Allocates blocks up to
  /// `capacity_tokens`, at least `num_tokens`. Returns false and changes nothing when the blocks do not suffice.
  bool fork(SequenceId parent, SequenceId child, int num_tokens, int capacity_tokens);

  /// Grows the sequence's table to hold `capacity_tokens`. False and no change when the blocks do not suffice.
  bool extend(SequenceId id, int capacity_tokens);

  /// Tells that the cache now holds the keys and values of all of `tokens` (prompt and generated, from the sequence's
  /// start). Blocks that became full enter the tree and can be shared from now on. Looks only at the tokens that are
  /// new since the last call; allocates no memory except where a prefix branches.
  void mark_computed(SequenceId id, std::span<const TokenId> tokens);

  /// Ends a sequence. With `keep`, what mark_computed told of (its last, partly full block too) stays findable;
  /// without, it is forgotten where no other sequence holds it and no cached block follows it.
  void remove_sequence(SequenceId id, bool keep);

  /// Appends what the device has to copy since the last call, in order: before the step that is being planned, since
  /// later plans overwrite what these copies read.
  void take_copies(std::vector<KvBlockCopy>& copies);

  /// Blocks of the sequence in order; valid until the next non-const call.
  std::span<const int32_t> block_table(SequenceId id) const;

  /// Blocks `capacity_tokens` tokens need, and how many a prompt would find in the tree now (whole blocks, in the
  /// host's memory too; for admission).
  int blocks_for(int capacity_tokens) const;
  int count_reusable_blocks(std::span<const TokenId> tokens, const KvPolicy* policy = nullptr) const;

  /// By how many add_sequence with these arguments would lower Stats::free_blocks now; it succeeds if there are so
  /// many.
  int count_needed_blocks(std::span<const TokenId> tokens, int capacity_tokens, bool reuse,
                          const KvPolicy* policy = nullptr) const;

  /// Forgets every cached block (they become free), those in the host's memory too.
  void clear_cache();

  /// As newly made: no sequences, no cached blocks, counters at 0. All or nothing when it throws.
  void reset();

  Stats stats() const;
  const Config& config() const;

  /// Throws Error(kInternal) with a text naming the first broken invariant (for tests; cost is linear in the blocks).
  void check_invariants() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace inflight
