#include <algorithm>
#include <utility>

#include "inflight/error.h"
#include "inflight_batcher/scheduler/scheduler_impl.h"

namespace inflight {
namespace {

// Under max_utilization at most 1 / kReserveShare of the pool is kept back from admissions for the growth of others.
constexpr int kReserveShare = 32;

}  // namespace

void Scheduler::Impl::plan_into(Step& step) {
  step.items.clear();
  step.paused.clear();
  step.copies.clear();
  step.num_tokens = 0;
  max_items_ = share_of_one_step();
  num_candidates_ = running_.size();
  refused_growths_ = 0;
  landing_blocks_ = leaving_blocks_;
  plan_generation(step);
  plan_contexts(step);
  kv_cache_.take_copies(step.copies);
}

/// Sequences of one step when all that could run are dealt out among the steps in flight.
size_t Scheduler::Impl::share_of_one_step() const {
  const size_t active = std::min<size_t>(running_.size() + waiting_.size(), config_.max_batch_size);
  return (active + config_.steps_in_flight - 1) / config_.steps_in_flight;
}

bool Scheduler::Impl::has_room(const Step& step) const {
  return step.num_tokens < config_.max_num_tokens && step.items.size() < max_items_;
}

bool Scheduler::Impl::can_advance(const Sequence& sequence) const {
  if (sequence.beams && !sequence.in_context()) return can_advance_beams(sequence);
  if (!sequence.plan_ahead && sequence.samples_in_flight > 0) return false;
  return sequence.items_in_flight < items_limit_ && sequence.drafts_in_flight == 0 && !sequence.has_all_tokens();
}

/// One token for each running sequence that is past its context; gathers those that are not into contexts_.
/// Pausing and holding back only ever concern sequences behind the one at hand, so neither the index nor contexts_ goes
/// stale.
void Scheduler::Impl::plan_generation(Step& step) {
  contexts_.clear();
  for (size_t i = 0; i < num_candidates_; ++i) {
    Sequence& sequence = *running_[i];
    if (!can_advance(sequence)) continue;
    if (sequence.in_context()) {
      contexts_.push_back(&sequence);
    } else if (sequence.beams) {
      plan_beams(sequence, step);
    } else if (has_room(step) && grow(sequence, step)) {
      push_item(sequence, 1, step);
    }
  }
}

/// The rest of the budget, by rank, for the contexts under way and the queue.
void Scheduler::Impl::plan_contexts(Step& step) {
  bool admitting = step.paused.empty() && refused_growths_ == 0;
  for (size_t next = 0; has_room(step);) {
    Sequence* under_way = next < contexts_.size() ? contexts_[next] : nullptr;
    Sequence* head = admitting && !waiting_.empty() ? *waiting_.begin() : nullptr;
    if (head && (!under_way || HigherRank()(head, under_way))) {
      admitting = admit(*head, step);
    } else if (under_way) {
      if (under_way->in_context())
        push_context(*under_way, step);
      else
        plan_recomputation(*under_way, step);
      ++next;
    } else {
      return;
    }
  }
}

int Scheduler::Impl::chunk_of(const Sequence& sequence, const Step& step) const {
  return std::min(sequence.pending(), config_.max_num_tokens - step.num_tokens);
}

Scheduler::Item& Scheduler::Impl::push_item(Sequence& sequence, int count, Step& step) {
  step.num_tokens += count;
  Item& item = step.items.emplace_back();
  item.id = item.table = sequence.id;
  item.slot = sequence.slot;
  item.first = sequence.planned;
  item.count = count;
  item.samples = sequence.pending() == count && !sequence.has_beams();
  item.is_context = sequence.in_context();
  sequence.planned += count;
  ++sequence.items_in_flight;
  sequence.samples_in_flight += item.samples;
  return item;
}

/// A chunk of the context; behind its last token come the drafts, as far as there is room.
Scheduler::Item& Scheduler::Impl::push_context(Sequence& sequence, Step& step) {
  Item& item = push_item(sequence, chunk_of(sequence, step), step);
  if (!item.samples || sequence.drafts.empty()) return item;
  const int count = room_for_drafts(sequence, step);
  item.drafts = std::span(sequence.drafts).first(count);
  item.count += count;
  step.num_tokens += count;
  sequence.planned += count;
  sequence.drafts_in_flight = count;
  return item;
}

/// How many of the drafts the step's budget and the KV blocks allow: nobody is paused for guesses.
int Scheduler::Impl::room_for_drafts(Sequence& sequence, const Step& step) {
  const int most = std::min(config_.max_num_tokens - step.num_tokens, sequence.max_total_tokens - sequence.size() - 1);
  const int count = std::min(static_cast<int>(sequence.drafts.size()), most);
  const int wanted = kv_cache_.blocks_for(sequence.size() + count);
  if (wanted <= sequence.blocks) return count;
  if (!kv_cache_.extend(sequence.id, sequence.size() + count)) return sequence.blocks * block_size_ - sequence.size();
  note_blocks(sequence, wanted);
  return count;
}

/// The sequence's table has grown.
void Scheduler::Impl::note_blocks(Sequence& sequence, int blocks) {
  if (is_guaranteed()) {
    sequence.reserved -= blocks - sequence.blocks;
    reserved_ -= blocks - sequence.blocks;
  }
  sequence.blocks = blocks;
}

/// Makes room for all tokens that the sequence has or is about to have, if need be by pausing others.
bool Scheduler::Impl::grow(Sequence& sequence, Step& step) {
  const int tokens = sequence.expected_size();
  if (tokens <= sequence.blocks * block_size_) return true;
  const int wanted = kv_cache_.blocks_for(tokens);
  if (!make_room(sequence, wanted - sequence.blocks, step)) return false;
  const bool extended = kv_cache_.extend(sequence.id, tokens);
  check(extended, ErrorCode::kInternal, "KV cache refused sequence ", sequence.id, " block ", wanted);
  note_blocks(sequence, wanted);
  return true;
}

/// Whether so many blocks can be had, if need be by pausing sequences of lower rank.
bool Scheduler::Impl::make_room(const Sequence& sequence, int blocks, Step& step) {
  while (kv_cache_.stats().free_blocks < blocks) {
    check(!is_guaranteed(), ErrorCode::kInternal, "sequence ", sequence.id, " has ", sequence.blocks,
          " KV blocks and lacks ", blocks, " reserved ones");
    Sequence* victim = lowest_pausable_below(sequence);
    if (!victim) {
      hold_back_below(sequence, blocks);
      return false;
    }
    pause(*victim, step);
  }
  return true;
}

Scheduler::Impl::Sequence* Scheduler::Impl::lowest_pausable_below(const Sequence& sequence) const {
  for (size_t i = num_candidates_; i-- > 0 && running_[i] != &sequence;) {
    if (!running_[i]->in_flight() && !running_[i]->has_all_tokens()) return running_[i];
  }
  return nullptr;
}

void Scheduler::Impl::pause(Sequence& sequence, Step& step) {
  step.paused.push_back(sequence.id);
  running_.erase(place_of(sequence));
  --num_candidates_;
  mark_computed(sequence);
  leave(sequence);
  sequence.computed = sequence.planned = sequence.reused = sequence.context_end = sequence.blocks = 0;
  waiting_.insert(&sequence);
}

/// All below are in flight. Enough of them to make up for the growths refused so far, the lowest first, are left out of
/// this step; then they land and can be paused, where they would be in flight for ever if always planned ahead.
void Scheduler::Impl::hold_back_below(const Sequence& sequence, int blocks) {
  refused_growths_ += blocks;
  while (landing_blocks_ < refused_growths_ && running_[num_candidates_ - 1] != &sequence) {
    landing_blocks_ += running_[--num_candidates_]->blocks;
  }
}

/// Blocks an admission may take.
int Scheduler::Impl::headroom() const {
  const KvCacheManager::Stats stats = kv_cache_.stats();
  if (is_guaranteed()) return stats.free_blocks - reserved_;
  return stats.free_blocks - std::min(static_cast<int>(running_.size()), stats.max_blocks / kReserveShare);
}

/// The most tokens of the sequence that will ever be in the cache, as far as admission must provide for them.
int Scheduler::Impl::capacity_wanted(const Sequence& sequence) const {
  return is_guaranteed() ? sequence.max_total_tokens - 1 : std::max(sequence.size(), sequence.known());
}

/// The same in blocks, those of all beams.
int Scheduler::Impl::blocks_wanted(const Sequence& sequence) const {
  return capacity_.blocks_of(sequence.size(), capacity_wanted(sequence), sequence.width());
}

bool Scheduler::Impl::has_budget(const Sequence& sequence, const Step& step) const {
  if (config_.enable_chunked_context) return true;
  const int reused_blocks =
      sequence.reuse_prefix ? kv_cache_.count_reusable_blocks(sequence.tokens, sequence.kv_policy.get()) : 0;
  return sequence.size() - reused_blocks * block_size_ <= config_.max_num_tokens - step.num_tokens;
}

/// Whether the queue's head has blocks to run. Matching a long prompt costs time, so after a refusal it is not tried
/// again before there are more blocks (with none running there are: all).
bool Scheduler::Impl::has_blocks(const Sequence& sequence) {
  const int blocks = headroom();
  if (refused_arrival_ == sequence.arrival && blocks <= refused_blocks_) return false;
  int needed = kv_cache_.count_needed_blocks(sequence.tokens, capacity_wanted(sequence), sequence.reuse_prefix,
                                             sequence.kv_policy.get());
  needed += blocks_wanted(sequence) - kv_cache_.blocks_for(capacity_wanted(sequence));
  if (needed <= blocks) return true;
  refused_arrival_ = sequence.arrival;
  refused_blocks_ = blocks;
  return false;
}

bool Scheduler::Impl::admit(Sequence& sequence, Step& step) {
  if (static_cast<int>(free_slots_.size()) < sequence.width() || !has_blocks(sequence) || !has_budget(sequence, step))
    return false;
  KvCacheManager::Admission admission;
  const bool added = kv_cache_.add_sequence(sequence.id, sequence.tokens, sequence.size(), sequence.reuse_prefix,
                                            &admission, sequence.kv_policy);
  check(added, ErrorCode::kInternal, "KV cache refused sequence ", sequence.id, " after it counted enough blocks");
  waiting_.erase(waiting_.begin());
  running_.insert(place_of(sequence), &sequence);
  take_slots(sequence);
  sequence.tokens.reserve(sequence.max_total_tokens);
  sequence.computed = sequence.planned = sequence.reused = admission.reused_tokens;
  sequence.context_end = sequence.size();
  sequence.blocks = kv_cache_.blocks_for(sequence.size());
  if (is_guaranteed()) sequence.reserved = blocks_wanted(sequence) - sequence.blocks;
  reserved_ += sequence.reserved;
  Item& item = push_context(sequence, step);
  item.admitted = true;
  item.admission = std::move(admission);
  return true;
}

}  // namespace inflight
