#include "inflight_batcher/scheduler/scheduler.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <unordered_map>
#include <utility>

#include "inflight/error.h"
#include "inflight_batcher/scheduler/sequence.h"

namespace inflight {
namespace {

// Under max_utilization at most 1 / kReserveShare of the pool is kept back from admissions for the growth of others.
constexpr int kReserveShare = 32;

Scheduler::Config checked(const Scheduler::Config& config) {
  check(config.max_batch_size > 0, ErrorCode::kInvalidArgument, "scheduler: max_batch_size is ", config.max_batch_size,
        ", wanted at least 1");
  check(config.max_num_tokens > 0, ErrorCode::kInvalidArgument, "scheduler: max_num_tokens is ", config.max_num_tokens,
        ", wanted at least 1");
  check(config.steps_in_flight > 0, ErrorCode::kInvalidArgument, "scheduler: steps_in_flight is ",
        config.steps_in_flight, ", wanted at least 1");
  return config;
}

}  // namespace

class Scheduler::Impl {
 public:
  Impl(const Config& config, KvCacheManager& kv_cache) : config_(checked(config)), kv_cache_(kv_cache) {
    running_.reserve(config.max_batch_size);
    contexts_.reserve(config.max_batch_size);
    free_slots_.reserve(config.max_batch_size);
    for (int slot = config.max_batch_size - 1; slot >= 0; --slot) free_slots_.push_back(slot);
  }

  void add(NewSequence added) {
    const int prompt_tokens = static_cast<int>(added.prompt.size());
    check(prompt_tokens > 0, ErrorCode::kInvalidArgument, "sequence ", added.id, " has an empty prompt");
    check(added.max_total_tokens > prompt_tokens, ErrorCode::kInvalidArgument, "sequence ", added.id,
          ": max_total_tokens is ", added.max_total_tokens, ", wanted more than the prompt's ", prompt_tokens);
    check(!std::isnan(added.priority), ErrorCode::kInvalidArgument, "sequence ", added.id,
          ": priority is not a number");
    std::string why;
    check(fits(prompt_tokens, added.max_total_tokens, &why), ErrorCode::kInvalidArgument, "sequence ", added.id, ": ",
          why);
    const auto [place, is_new] = sequences_.try_emplace(added.id);
    check(is_new, ErrorCode::kAlreadyExists, "sequence ", added.id, " exists already");
    Sequence& sequence = place->second;
    sequence.id = added.id;
    sequence.tokens = std::move(added.prompt);
    sequence.max_total_tokens = added.max_total_tokens;
    sequence.priority = added.priority;
    sequence.reuse_prefix = added.reuse_prefix;
    sequence.arrival = next_arrival_++;
    waiting_.insert(&sequence);
  }

  bool fits(int prompt_tokens, int max_total_tokens, std::string* why) const {
    const auto refuse = [why](const std::string& text) {
      if (why) *why = text;
      return false;
    };
    const int blocks = kv_cache_.blocks_for(max_total_tokens - 1);
    if (blocks > kv_cache_.config().num_blocks) {
      return refuse(concat(max_total_tokens, " tokens need ", blocks, " KV blocks of ", kv_cache_.config().block_size,
                           " tokens, the pool has ", kv_cache_.config().num_blocks));
    }
    const bool recomputes = config_.policy == CapacityPolicy::kMaxUtilization;
    const int context = recomputes ? std::max(prompt_tokens, max_total_tokens - 1) : prompt_tokens;
    if (!config_.enable_chunked_context && context > config_.max_num_tokens) {
      return refuse(concat("without chunked context ", recomputes ? "recomputing " : "a prompt of ", context,
                           " tokens exceeds max_num_tokens ", config_.max_num_tokens));
    }
    return true;
  }

  void plan_into(Step& step) {
    step.items.clear();
    step.paused.clear();
    step.num_tokens = 0;
    max_items_ = share_of_one_step();
    plan_generation(step);
    plan_contexts(step);
  }

  void complete(const Item& item, std::optional<TokenId> sampled) {
    Sequence& sequence = find(item.id);
    check(sequence.in_flight && sequence.computed == item.first, ErrorCode::kInternal, "sequence ", item.id,
          " completes tokens from ", item.first,
          sequence.in_flight ? ", in flight are those from " : ", not in flight at ", sequence.computed);
    // Of a finished one it no longer matters whether its step came to a token or failed.
    check(sequence.finished || sampled.has_value() == item.samples, ErrorCode::kInternal, "sequence ", item.id,
          " completes ", sampled ? "with" : "without", " a sampled token, its item says otherwise");
    sequence.in_flight = false;
    if (sequence.finished) {
      leave(sequence);
      sequences_.erase(sequence.id);
      return;
    }
    sequence.computed += item.count;
    kv_cache_.mark_computed(sequence.id, std::span(sequence.tokens).first(sequence.computed));
    if (sampled) sequence.tokens.push_back(*sampled);
  }

  void finish(SequenceId id) {
    Sequence& sequence = find(id);
    check(!sequence.finished, ErrorCode::kInternal, "sequence ", id, " is finished already");
    if (sequence.slot < 0) {
      waiting_.erase(&sequence);
      sequences_.erase(id);
      return;
    }
    running_.erase(place_of(sequence));
    release_reservation(sequence);
    sequence.finished = true;
    if (sequence.in_flight) return;
    leave(sequence);
    sequences_.erase(id);
  }

  std::span<const TokenId> tokens(SequenceId id) const {
    const auto found = sequences_.find(id);
    check(found != sequences_.end() && !found->second.finished, ErrorCode::kInternal, "no live sequence ", id);
    return found->second.tokens;
  }

  bool contains(SequenceId id) const {
    const auto found = sequences_.find(id);
    return found != sequences_.end() && !found->second.finished;
  }

  Counts counts() const { return {static_cast<int>(waiting_.size()), static_cast<int>(running_.size())}; }

  void check_invariants() const;

 private:
  using Sequence = ScheduledSequence;
  using Running = std::vector<Sequence*>;

  Sequence& find(SequenceId id) {
    const auto found = sequences_.find(id);
    check(found != sequences_.end(), ErrorCode::kInternal, "no sequence ", id);
    return found->second;
  }

  Running::iterator place_of(const Sequence& sequence) {
    return std::lower_bound(running_.begin(), running_.end(), &sequence, HigherRank());
  }

  /// Sequences of one step when all that could run are dealt out among the steps in flight.
  size_t share_of_one_step() const {
    const size_t active = std::min<size_t>(running_.size() + waiting_.size(), config_.max_batch_size);
    return (active + config_.steps_in_flight - 1) / config_.steps_in_flight;
  }

  bool has_room(const Step& step) const {
    return step.num_tokens < config_.max_num_tokens && step.items.size() < max_items_;
  }

  bool is_guaranteed() const { return config_.policy == CapacityPolicy::kGuaranteedNoEvict; }

  /// One token for each running sequence that is past its context; gathers those that are not into contexts_.
  /// Pausing only ever removes sequences behind the one at hand, so neither the index nor contexts_ goes stale.
  void plan_generation(Step& step) {
    contexts_.clear();
    for (size_t i = 0; i < running_.size(); ++i) {
      Sequence& sequence = *running_[i];
      if (!sequence.is_idle()) continue;
      if (sequence.in_context()) {
        contexts_.push_back(&sequence);
      } else if (has_room(step) && grow(sequence, step)) {
        push_item(sequence, 1, step);
      }
    }
  }

  /// The rest of the budget, by rank, for the contexts under way and the queue.
  void plan_contexts(Step& step) {
    bool admitting = step.paused.empty();
    for (size_t next = 0; has_room(step);) {
      Sequence* under_way = next < contexts_.size() ? contexts_[next] : nullptr;
      Sequence* head = admitting && !waiting_.empty() ? *waiting_.begin() : nullptr;
      if (head && (!under_way || HigherRank()(head, under_way))) {
        admitting = admit(*head, step);
      } else if (under_way) {
        push_item(*under_way, chunk_of(*under_way, step), step);
        ++next;
      } else {
        return;
      }
    }
  }

  int chunk_of(const Sequence& sequence, const Step& step) const {
    return std::min(sequence.pending(), config_.max_num_tokens - step.num_tokens);
  }

  Item& push_item(Sequence& sequence, int count, Step& step) {
    sequence.in_flight = true;
    step.num_tokens += count;
    Item& item = step.items.emplace_back();
    item.id = sequence.id;
    item.slot = sequence.slot;
    item.first = sequence.computed;
    item.count = count;
    item.samples = sequence.pending() == count;
    item.is_context = sequence.in_context();
    return item;
  }

  /// Makes room for all known tokens of the sequence, if need be by pausing others.
  bool grow(Sequence& sequence, Step& step) {
    const int wanted = kv_cache_.blocks_for(sequence.size());
    if (wanted <= sequence.blocks) return true;
    while (!kv_cache_.extend(sequence.id, sequence.size())) {
      check(!is_guaranteed(), ErrorCode::kInternal, "sequence ", sequence.id, " has ", sequence.blocks,
            " KV blocks and lacks the reserved block ", wanted);
      Sequence* victim = lowest_idle_below(sequence);
      if (!victim) return false;
      pause(*victim, step);
    }
    if (is_guaranteed()) {
      sequence.reserved -= wanted - sequence.blocks;
      reserved_ -= wanted - sequence.blocks;
    }
    sequence.blocks = wanted;
    return true;
  }

  Sequence* lowest_idle_below(const Sequence& sequence) const {
    for (size_t i = running_.size(); i-- > 0 && running_[i] != &sequence;) {
      if (running_[i]->is_idle()) return running_[i];
    }
    return nullptr;
  }

  void pause(Sequence& sequence, Step& step) {
    step.paused.push_back(sequence.id);
    running_.erase(place_of(sequence));
    leave(sequence);
    sequence.computed = sequence.context_end = sequence.blocks = 0;
    waiting_.insert(&sequence);
  }

  /// Gives back slot and blocks.
  void leave(Sequence& sequence) {
    kv_cache_.remove_sequence(sequence.id, true);
    free_slots_.push_back(sequence.slot);
    sequence.slot = -1;
  }

  void release_reservation(Sequence& sequence) {
    reserved_ -= sequence.reserved;
    sequence.reserved = 0;
  }

  /// Blocks an admission may take.
  int headroom() const {
    const KvCacheManager::Stats stats = kv_cache_.stats();
    if (is_guaranteed()) return stats.free_blocks - reserved_;
    return stats.free_blocks - std::min(static_cast<int>(running_.size()), stats.max_blocks / kReserveShare);
  }

  /// The most tokens of the sequence that will ever be in the cache, as far as admission must provide for them.
  int capacity_wanted(const Sequence& sequence) const {
    return is_guaranteed() ? sequence.max_total_tokens - 1 : sequence.size();
  }

  bool has_budget(const Sequence& sequence, const Step& step) const {
    if (config_.enable_chunked_context) return true;
    const int reused_blocks = sequence.reuse_prefix ? kv_cache_.count_reusable_blocks(sequence.tokens) : 0;
    return sequence.size() - reused_blocks * kv_cache_.config().block_size <= config_.max_num_tokens - step.num_tokens;
  }

  /// Whether the queue's head has blocks to run. Matching a long prompt costs time, so after a refusal it is not tried
  /// again before there are more blocks (with none running there are: all).
  bool has_blocks(const Sequence& sequence) {
    const int blocks = headroom();
    if (refused_arrival_ == sequence.arrival && blocks <= refused_blocks_) return false;
    const int needed = kv_cache_.count_needed_blocks(sequence.tokens, capacity_wanted(sequence), sequence.reuse_prefix);
    if (needed <= blocks) return true;
    refused_arrival_ = sequence.arrival;
    refused_blocks_ = blocks;
    return false;
  }

  bool admit(Sequence& sequence, Step& step) {
    if (free_slots_.empty() || !has_blocks(sequence) || !has_budget(sequence, step)) return false;
    KvCacheManager::Admission admission;
    const bool added =
        kv_cache_.add_sequence(sequence.id, sequence.tokens, sequence.size(), sequence.reuse_prefix, &admission);
    check(added, ErrorCode::kInternal, "KV cache refused sequence ", sequence.id, " after it counted enough blocks");
    waiting_.erase(waiting_.begin());
    running_.insert(place_of(sequence), &sequence);
    sequence.slot = free_slots_.back();
    free_slots_.pop_back();
    sequence.tokens.reserve(sequence.max_total_tokens);
    sequence.computed = admission.reused_tokens;
    sequence.context_end = sequence.size();
    sequence.blocks = kv_cache_.blocks_for(sequence.size());
    if (is_guaranteed()) sequence.reserved = kv_cache_.blocks_for(capacity_wanted(sequence)) - sequence.blocks;
    reserved_ += sequence.reserved;
    Item& item = push_item(sequence, chunk_of(sequence, step), step);
    item.admitted = true;
    item.admission = std::move(admission);
    return true;
  }

  void check_running(const Sequence& sequence) const;

  Config config_;
  KvCacheManager& kv_cache_;
  std::unordered_map<SequenceId, Sequence> sequences_;
  std::set<Sequence*, HigherRank> waiting_;
  Running running_;   // sorted by rank; not the finished ones still in flight
  Running contexts_;  // scratch of plan_into()
  std::vector<int> free_slots_;
  size_t max_items_ = 0;  // of the step being planned
  int reserved_ = 0;      // sum over the running ones
  uint64_t next_arrival_ = 1;
  uint64_t refused_arrival_ = 0;
  int refused_blocks_ = 0;
};

void Scheduler::Impl::check_running(const Sequence& sequence) const {
  const int table = static_cast<int>(kv_cache_.block_table(sequence.id).size());
  check(sequence.blocks == table, ErrorCode::kInternal, "sequence ", sequence.id, " counts ", sequence.blocks,
        " KV blocks, its table has ", table);
  check(sequence.computed < sequence.size(), ErrorCode::kInternal, "sequence ", sequence.id, " has computed ",
        sequence.computed, " of ", sequence.size(), " tokens");
  check(sequence.reserved >= 0, ErrorCode::kInternal, "sequence ", sequence.id, " reserves ", sequence.reserved,
        " blocks");
}

void Scheduler::Impl::check_invariants() const {
  check(std::is_sorted(running_.begin(), running_.end(), HigherRank()), ErrorCode::kInternal,
        "running sequences are not sorted by rank");
  int reserved = 0;
  size_t finished = 0;
  std::set<int> slots(free_slots_.begin(), free_slots_.end());
  for (const auto& [id, sequence] : sequences_) {
    finished += sequence.finished;
    reserved += sequence.reserved;
    const bool waits = waiting_.contains(const_cast<Sequence*>(&sequence));
    check(waits == (sequence.slot < 0), ErrorCode::kInternal, "sequence ", id, waits ? " waits with" : " runs without",
          " a slot");
    if (waits) continue;
    check(slots.insert(sequence.slot).second, ErrorCode::kInternal, "slot ", sequence.slot, " is taken twice");
    check_running(sequence);
  }
  check(static_cast<int>(slots.size()) == config_.max_batch_size, ErrorCode::kInternal, slots.size(), " slots of ",
        config_.max_batch_size, " are accounted for");
  check(sequences_.size() == waiting_.size() + running_.size() + finished, ErrorCode::kInternal, sequences_.size(),
        " sequences, of them ", waiting_.size(), " wait, ", running_.size(), " run, ", finished, " are finished");
  const int free_blocks = kv_cache_.stats().free_blocks;
  check(reserved == reserved_ && reserved <= free_blocks, ErrorCode::kInternal, reserved, " KV blocks reserved, ",
        reserved_, " counted, ", free_blocks, " free");
}

Scheduler::Scheduler(const Config& config, KvCacheManager& kv_cache)
    : impl_(std::make_unique<Impl>(config, kv_cache)) {}
Scheduler::~Scheduler() = default;

void Scheduler::add(NewSequence sequence) { impl_->add(std::move(sequence)); }

bool Scheduler::fits(int prompt_tokens, int max_total_tokens, std::string* why) const {
  return impl_->fits(prompt_tokens, max_total_tokens, why);
}

Scheduler::Step Scheduler::plan() {
  Step step;
  plan_into(step);
  return step;
}

void Scheduler::plan_into(Step& step) { impl_->plan_into(step); }

void Scheduler::complete(const Item& item, std::optional<TokenId> sampled) { impl_->complete(item, sampled); }

void Scheduler::finish(SequenceId id) { impl_->finish(id); }

std::span<const TokenId> Scheduler::tokens(SequenceId id) const { return impl_->tokens(id); }

bool Scheduler::contains(SequenceId id) const { return impl_->contains(id); }

Scheduler::Counts Scheduler::counts() const { return impl_->counts(); }

void Scheduler::check_invariants() const { impl_->check_invariants(); }

}  // namespace inflight
