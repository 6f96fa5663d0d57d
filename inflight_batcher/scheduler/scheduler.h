#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "inflight_batcher/api/executor_config.h"
#include "inflight_batcher/kv_cache/kv_cache_manager.h"

namespace inflight {

/// Decides, step by step, which sequences advance and by how many tokens. Host data only: no device, no clock, no
/// threads; plain data in and out, so it is tested by simulation. It drives the KvCacheManager it is given.
///
/// Rank: higher priority first, then order of arrival (add(), also after a pause). It is fixed for a sequence's life
/// and decides everything: the queue is strict (nobody is admitted while one of higher rank waits, even if the latter
/// does not fit yet: the running ones end and make room), tokens and blocks go to the highest rank first, and a
/// sequence is only ever paused for one of higher rank. So the highest rank always advances, and nobody starves but for
/// an endless stream of higher priority.
///
/// Capacity. Under guaranteed_no_evict a sequence is admitted when its blocks up to max_total_tokens fit beside those
/// that the running ones may still ask for; blocks are allocated as they are needed. Under max_utilization it is
/// admitted when its known tokens fit beside a small reserve for the growth of the running ones; one that cannot grow
/// takes the blocks of the lowest-ranked below it that are not in flight. Where all of them are, it waits, and the
/// lowest are left out of the step so that they land and can be paused in the next one.
///
/// Planning ahead. Without it a sequence in flight is left alone until its item completes. With it (plan_ahead) it may
/// be in two steps at once: its next chunk, or the position behind the token that the item in flight will give. That
/// token is then no part of tokens() yet; only the device has it when the step runs.
///
/// Beams. A sequence with beam_width > 1 computes its prompt once and then its beams side by side, always in the same
/// step; they are admitted, paused and finished as one and hold beam_width slots. The caller chooses the beams from
/// what the step brings (continue_beams); they are never planned ahead of that choice. Their blocks count as if each
/// beam had its own behind the prompt's whole blocks; only the prompt can be found by others while they run. After a
/// pause the prompt is recomputed once, then each beam up to its last token, then all go on together.
///
/// A sequence's life: waiting -> running (has a slot and KV blocks) -> finished; under max_utilization a running one
/// may be paused: it loses its blocks (findable in the prefix tree while they last), waits in front of the queue, and
/// later recomputes what it had. Context chunks and generation tokens are the same: tokens known but not yet computed.
class Scheduler {
 public:
  struct Config {
    int max_batch_size = 256;   // sequences in flight = slots
    int max_num_tokens = 2048;  // of one step
    bool enable_chunked_context = true;
    CapacityPolicy policy = CapacityPolicy::kGuaranteedNoEvict;
    int steps_in_flight = 1;  // pipeline stages: sequences are dealt out evenly among so many overlapping steps
    bool plan_ahead = false;  // a sequence may be in two overlapping steps; wants steps_in_flight = 1
  };

  /// A new sequence. `max_total_tokens` = prompt + most new tokens; the caller has checked it against the limits and
  /// that the KV pool as a whole can hold it (see fits()).
  struct NewSequence {
    SequenceId id = 0;
    std::vector<TokenId> prompt;
    int max_total_tokens = 0;  // a sequence with so many is planned no further: it waits for finish()
    float priority = 0.5f;
    bool reuse_prefix = true;
    KvCacheManager::PolicyPtr kv_policy;  // null: all by default
    std::vector<TokenId> drafts;          // guessed to follow the prompt: computed once, in the step that samples first
    int beam_width = 1;
    bool plan_ahead = true;  // false: never planned behind a token that is not known yet
  };

  /// One sequence's part of a step: tokens [first, first + count) of it are computed. Of a sequence in flight the last
  /// one may be unknown yet: then it is tokens(id).size() <= first (and count is 1). The last drafts.size() of them are
  /// guesses; such an item is the last one of its sequence in flight.
  struct Item {
    SequenceId id = 0;
    int slot = 0;  // row of per-sequence state, stable while the sequence runs
    int first = 0;
    int count = 0;
    bool samples = false;                 // the step computes its last token there is: a new one comes out
    std::span<const TokenId> drafts;      // valid until the item completes
    bool admitted = false;                // first step since it waited (new or paused before)
    bool is_context = false;              // computes prompt tokens, or recomputes after a pause
    KvCacheManager::Admission admission;  // when admitted
    SequenceId table = 0;                 // whose KV blocks: the sequence's id, or that of a beam's lane
    int lane = 0;                         // which of the beams
    bool moved = false;  // a beam forked since its slot's last step, which has not seen the tokens before
  };

  /// A token that continues the beam in a lane.
  struct BeamChoice {
    int lane = 0;
    TokenId token = 0;
  };

  struct Step {
    std::vector<Item> items;          // may be empty: nothing to do, or all is in flight
    std::vector<SequenceId> paused;   // lost their slot and blocks in this call
    std::vector<KvBlockCopy> copies;  // for the device to run in this order, before anything else of the step
    int num_tokens = 0;
  };

  struct Counts {
    int waiting = 0;
    int running = 0;
    int slots = 0;  // taken; beams take one each
  };

  Scheduler(const Config& config, KvCacheManager& kv_cache);
  ~Scheduler();

  /// Queues a sequence: higher priority first, then order of arrival. Throws Error: kInvalidArgument (an empty prompt,
  /// max_total_tokens not above it, a priority that is no number, or what fits() says), kAlreadyExists (the id lives,
  /// or was finished in flight and its complete() has not come yet).
  void add(NewSequence sequence);

  /// Whether a sequence of so many tokens could ever run alone: its blocks and, without chunking, its prompt (under
  /// max_utilization also its longest recomputation) fit the budgets, and so do its beams. When not, *why names both
  /// numbers. The last token is never computed, so it counts for neither. May be called from any thread.
  bool fits(int prompt_tokens, int max_total_tokens, std::string* why, int beam_width = 1) const;

  /// Plans the next step and marks its sequences as in flight: they are left alone until complete(), or planned once
  /// more under plan_ahead. So several steps can be under way at once; a sequence is in a step once at most. Generation
  /// goes first, then contexts in queue order under the token budget. A step that is not empty always makes progress;
  /// an empty one with nothing in flight means that nothing waits.
  /// The contexts under way and the queue are served as one, by rank; a step that pauses admits nobody.
  Step plan();

  /// The same into a step whose memory is used again.
  void plan_into(Step& step);

  /// Reports a step's end: the item's sequence has been computed up to the item's last token; `sampled` is the new
  /// token when the item sampled and the sequence has no beams. The caller finishes sequences itself (finish()). Steps
  /// complete in the order of plan().
  void complete(const Item& item, std::optional<TokenId> sampled);

  /// The same for an item that sampled with drafts: the leading ones that were confirmed, and one token more. What was
  /// computed of the other drafts is void.
  void complete(const Item& item, std::span<const TokenId> sampled);
  /// Continues a sequence's beams once all that was in flight is complete: `choices` are the new beams, at most
  /// beam_width, each by the lane of its parent (0 before there are beams) and its new token. Returns the lane of each.
  /// A beam without a choice ends.
  std::vector<int> continue_beams(SequenceId id, std::span<const BeamChoice> choices);

  /// Ends a sequence, waiting or running; frees slot and blocks. If it is in flight, what it computes is discarded:
  /// its slot and blocks are held until complete() has been called for its last item, but it is no longer contained or
  /// counted.
  void finish(SequenceId id);

  /// All known tokens of a live sequence: prompt and generated, with beams the prompt. They stay where they are while
  /// it runs: a span taken then is good until its last item completes.
  std::span<const TokenId> tokens(SequenceId id) const;

  /// The same for an item in flight, finished or not, without searching; of a beam its tokens.
  std::span<const TokenId> tokens(const Item& item) const;
  bool contains(SequenceId id) const;
  Counts counts() const;

  /// As newly made, over a KV cache manager that is as newly made. All or nothing when it throws.
  void reset();

  /// As KvCacheManager::check_invariants, for the scheduler's own books.
  void check_invariants() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
  std::unique_ptr<const class CapacityCheck> capacity_;  // outlives resets
};

}  // namespace inflight
