#include "inflight_batcher/scheduler/scheduler.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "inflight/error.h"
#include "inflight_batcher/scheduler/scheduler_impl.h"

namespace inflight {
namespace {

Scheduler::Config checked(const Scheduler::Config& config) {
  const auto positive = [](const char* name, int value) {
    check(value > 0, ErrorCode::kInvalidArgument, "scheduler: ", name, " is ", value, ", wanted at least 1");
  };
  positive("max_batch_size", config.max_batch_size);
  positive("max_num_tokens", config.max_num_tokens);
  positive("steps_in_flight", config.steps_in_flight);
  check(!config.plan_ahead || config.steps_in_flight == 1, ErrorCode::kInvalidArgument,
        "scheduler: plan_ahead with steps_in_flight ", config.steps_in_flight, ", wanted 1");
  return config;
}

}  // namespace

Scheduler::Impl::Impl(const Config& config, KvCacheManager& kv_cache)
    : config_(checked(config)),
      capacity_(config, kv_cache.config()),
      block_size_(kv_cache.config().block_size),
      items_limit_(config.plan_ahead ? 2 : 1),
      kv_cache_(kv_cache),
      by_slot_(config.max_batch_size) {
  running_.reserve(config.max_batch_size);
  contexts_.reserve(config.max_batch_size);
  free_slots_.reserve(config.max_batch_size);
  for (int slot = config.max_batch_size - 1; slot >= 0; --slot) free_slots_.push_back(slot);
}

void Scheduler::Impl::add(NewSequence added) {
  const int prompt_tokens = static_cast<int>(added.prompt.size());
  check(prompt_tokens > 0, ErrorCode::kInvalidArgument, "sequence ", added.id, " has an empty prompt");
  check(added.max_total_tokens > prompt_tokens, ErrorCode::kInvalidArgument, "sequence ", added.id,
        ": max_total_tokens is ", added.max_total_tokens, ", wanted more than the prompt's ", prompt_tokens);
  check(!std::isnan(added.priority), ErrorCode::kInvalidArgument, "sequence ", added.id, ": priority is not a number");
  check(added.drafts.empty() || added.beam_width == 1, ErrorCode::kInvalidArgument, "sequence ", added.id, " has ",
        added.drafts.size(), " drafts and ", added.beam_width, " beams, wanted no drafts with beams");
  std::string why;
  check(capacity_.fits(prompt_tokens, added.max_total_tokens, &why, added.beam_width), ErrorCode::kInvalidArgument,
        "sequence ", added.id, ": ", why);
  const auto [place, is_new] = sequences_.try_emplace(added.id);
  check(is_new, ErrorCode::kAlreadyExists, "sequence ", added.id, " exists already");
  Sequence& sequence = place->second;
  sequence.id = added.id;
  sequence.tokens = std::move(added.prompt);
  sequence.max_total_tokens = added.max_total_tokens;
  sequence.priority = added.priority;
  sequence.reuse_prefix = added.reuse_prefix;
  sequence.kv_policy = std::move(added.kv_policy);
  sequence.drafts = std::move(added.drafts);
  sequence.plan_ahead = added.plan_ahead;
  if (added.beam_width > 1) sequence.beams = std::make_unique<ScheduledBeams>();
  if (added.beam_width > 1) sequence.beams->lanes.resize(added.beam_width);
  sequence.arrival = next_arrival_++;
  waiting_.insert(&sequence);
}

void Scheduler::Impl::complete(const Item& item, std::span<const TokenId> sampled) {
  Sequence& sequence = at_slot(item);
  if (sequence.has_beams() && item.first >= sequence.size()) return complete_beam(sequence, item);
  check(sequence.in_flight() && sequence.computed == item.first, ErrorCode::kInternal, "sequence ", item.id,
        " completes tokens from ", item.first,
        sequence.in_flight() ? ", in flight are those from " : ", not in flight at ", sequence.computed);
  // Of a finished one it no longer matters whether its step came to a token or failed.
  const size_t most = item.samples && !sequence.beams ? 1 + item.drafts.size() : 0;
  const size_t least = most > 0 ? 1 : 0;
  check(sequence.finished || (sampled.size() >= least && sampled.size() <= most), ErrorCode::kInternal, "sequence ",
        item.id, " completes with ", sampled.size(), " sampled tokens, wanted ", least, " to ", most);
  --sequence.items_in_flight;
  sequence.samples_in_flight -= item.samples;
  sequence.computed += item.count;
  if (sequence.finished) return release_if_landed(sequence);
  if (!item.drafts.empty()) {
    const int refused = static_cast<int>(most - sampled.size());
    sequence.computed -= refused;
    sequence.planned -= refused;
    sequence.drafts_in_flight = 0;
  }
  sequence.tokens.insert(sequence.tokens.end(), sampled.begin(), sampled.end());
  if (item.samples) sequence.drafts.clear();
  // Only full blocks can be found by others while the sequence runs.
  if (sequence.computed / block_size_ != item.first / block_size_) mark_computed(sequence);
}

/// Of a finished one that was in flight.
void Scheduler::Impl::release_if_landed(Sequence& sequence) {
  if (sequence.in_flight()) return;
  leaving_blocks_ -= sequence.blocks;
  leave(sequence);
  sequences_.erase(sequence.id);
}

void Scheduler::Impl::finish(SequenceId id) {
  const auto found = sequences_.find(id);
  check(found != sequences_.end(), ErrorCode::kInternal, "no sequence ", id);
  Sequence& sequence = found->second;
  check(!sequence.finished, ErrorCode::kInternal, "sequence ", id, " is finished already");
  if (sequence.slot < 0) {
    waiting_.erase(&sequence);
    sequences_.erase(found);
    return;
  }
  running_.erase(place_of(sequence));
  reserved_ -= std::exchange(sequence.reserved, 0);
  mark_computed(sequence);
  sequence.finished = true;
  if (sequence.in_flight()) {
    leaving_blocks_ += sequence.blocks;
    return;
  }
  leave(sequence);
  sequences_.erase(found);
}

std::span<const TokenId> Scheduler::Impl::tokens(SequenceId id) const {
  const auto found = sequences_.find(id);
  check(found != sequences_.end() && !found->second.finished, ErrorCode::kInternal, "no live sequence ", id);
  return found->second.tokens;
}

std::span<const TokenId> Scheduler::Impl::tokens(const Item& item) const {
  const Sequence& sequence = at_slot(item);
  return item.first < sequence.size() || !sequence.has_beams() ? sequence.tokens
                                                               : sequence.beams->lanes[item.lane].tokens;
}

bool Scheduler::Impl::contains(SequenceId id) const {
  const auto found = sequences_.find(id);
  return found != sequences_.end() && !found->second.finished;
}

// An item's sequence keeps its slot at least until the item completes.
Scheduler::Impl::Sequence& Scheduler::Impl::at_slot(const Item& item) const {
  Sequence* sequence = item.slot >= 0 && item.slot < config_.max_batch_size ? by_slot_[item.slot] : nullptr;
  check(sequence && sequence->id == item.id, ErrorCode::kInternal, "sequence ", item.id, " is not in slot ", item.slot);
  return *sequence;
}

Scheduler::Impl::Running::iterator Scheduler::Impl::place_of(const Sequence& sequence) {
  return std::lower_bound(running_.begin(), running_.end(), &sequence, HigherRank());
}

// What an admission found says nothing before its first item is complete: a part of it is copied by that step.
void Scheduler::Impl::mark_computed(Sequence& sequence) {
  if (sequence.computed == sequence.reused) return;
  if (sequence.beams && !sequence.beams->lanes[0].has_table) return;  // another lane has the prompt's blocks
  kv_cache_.mark_computed(sequence.id, std::span(sequence.tokens).first(sequence.computed));
}

/// Gives back slot and blocks.
void Scheduler::Impl::leave(Sequence& sequence) {
  if (sequence.beams) return leave_beams(sequence);
  kv_cache_.remove_sequence(sequence.id, true);
  by_slot_[sequence.slot] = nullptr;
  free_slots_.push_back(std::exchange(sequence.slot, -1));
}

Scheduler::Scheduler(const Config& config, KvCacheManager& kv_cache)
    : impl_(std::make_unique<Impl>(config, kv_cache)),
      capacity_(std::make_unique<CapacityCheck>(config, kv_cache.config())) {}
Scheduler::~Scheduler() = default;

void Scheduler::add(NewSequence sequence) { impl_->add(std::move(sequence)); }

bool Scheduler::fits(int prompt_tokens, int max_total_tokens, std::string* why, int beam_width) const {
  return capacity_->fits(prompt_tokens, max_total_tokens, why, beam_width);
}

Scheduler::Step Scheduler::plan() {
  Step step;
  plan_into(step);
  return step;
}

void Scheduler::plan_into(Step& step) { impl_->plan_into(step); }

void Scheduler::complete(const Item& item, std::optional<TokenId> sampled) {
  impl_->complete(item, sampled ? std::span<const TokenId>(&*sampled, 1) : std::span<const TokenId>());
}

void Scheduler::complete(const Item& item, std::span<const TokenId> sampled) { impl_->complete(item, sampled); }

std::vector<int> Scheduler::continue_beams(SequenceId id, std::span<const BeamChoice> choices) {
  return impl_->continue_beams(id, choices);
}

void Scheduler::finish(SequenceId id) { impl_->finish(id); }

std::span<const TokenId> Scheduler::tokens(SequenceId id) const { return impl_->tokens(id); }

std::span<const TokenId> Scheduler::tokens(const Item& item) const { return impl_->tokens(item); }

bool Scheduler::contains(SequenceId id) const { return impl_->contains(id); }

Scheduler::Counts Scheduler::counts() const { return impl_->counts(); }

void Scheduler::reset() { impl_ = impl_->fresh(); }

void Scheduler::check_invariants() const { impl_->check_invariants(); }

}  // namespace inflight
