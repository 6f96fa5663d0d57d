#include <algorithm>
#include <set>

#include "inflight/error.h"
#include "inflight_batcher/scheduler/scheduler_impl.h"

namespace inflight {

void Scheduler::Impl::check_running(const Sequence& sequence) const {
  check(sequence.reserved >= 0, ErrorCode::kInternal, "sequence ", sequence.id, " reserves ", sequence.reserved,
        " blocks");
  if (sequence.beams) check_beams(sequence);
  if (sequence.has_beams()) return;
  const int table = static_cast<int>(kv_cache_.block_table(sequence.id).size());
  check(sequence.blocks == table, ErrorCode::kInternal, "sequence ", sequence.id, " counts ", sequence.blocks,
        " KV blocks, its table has ", table);
  check(sequence.planned <= table * block_size_, ErrorCode::kInternal, "sequence ", sequence.id, " is planned up to ",
        sequence.planned, " tokens, its KV blocks hold ", table * block_size_);
  check(sequence.items_in_flight >= 0 && sequence.items_in_flight <= items_limit_, ErrorCode::kInternal, "sequence ",
        sequence.id, " is in ", sequence.items_in_flight, " steps, at most ", items_limit_, " wanted");
  check(sequence.in_flight() == (sequence.planned > sequence.computed), ErrorCode::kInternal, "sequence ", sequence.id,
        " has computed ", sequence.computed, " of ", sequence.planned, " planned tokens, with ",
        sequence.items_in_flight, " items in flight");
  if (sequence.finished) return;
  check((sequence.beams || sequence.planned < sequence.expected_size()) &&
            sequence.expected_size() <= sequence.max_total_tokens,
        ErrorCode::kInternal, "sequence ", sequence.id, " is planned up to ", sequence.planned, " of ",
        sequence.expected_size(), " tokens, at most ", sequence.max_total_tokens, " wanted");
}

void Scheduler::Impl::check_invariants() const {
  check(std::is_sorted(running_.begin(), running_.end(), HigherRank()), ErrorCode::kInternal,
        "running sequences are not sorted by rank");
  int reserved = 0, leaving = 0;
  size_t finished = 0;
  std::set<int> slots(free_slots_.begin(), free_slots_.end());
  for (const auto& [id, sequence] : sequences_) {
    finished += sequence.finished;
    leaving += sequence.finished ? sequence.blocks : 0;
    reserved += sequence.reserved;
    const bool waits = waiting_.contains(const_cast<Sequence*>(&sequence));
    check(waits == (sequence.slot < 0), ErrorCode::kInternal, "sequence ", id, waits ? " waits with" : " runs without",
          " a slot");
    if (waits) continue;
    check(slots.insert(sequence.slot).second, ErrorCode::kInternal, "slot ", sequence.slot, " is taken twice");
    for (int beam = 1; beam < sequence.width(); ++beam)
      check(slots.insert(sequence.beams->lanes[beam].slot).second, ErrorCode::kInternal, "slot ",
            sequence.beams->lanes[beam].slot, " is taken twice");
    check(by_slot_[sequence.slot] == &sequence, ErrorCode::kInternal, "slot ", sequence.slot, " is not that of ", id);
    check_running(sequence);
  }
  check(static_cast<int>(slots.size()) == config_.max_batch_size, ErrorCode::kInternal, slots.size(), " slots of ",
        config_.max_batch_size, " are accounted for");
  check(sequences_.size() == waiting_.size() + running_.size() + finished, ErrorCode::kInternal, sequences_.size(),
        " sequences, of them ", waiting_.size(), " wait, ", running_.size(), " run, ", finished, " are finished");
  check(leaving == leaving_blocks_, ErrorCode::kInternal, leaving, " KV blocks of finished sequences, ",
        leaving_blocks_, " counted");
  const int free_blocks = kv_cache_.stats().free_blocks;
  check(reserved == reserved_ && reserved <= free_blocks, ErrorCode::kInternal, reserved, " KV blocks reserved, ",
        reserved_, " counted, ", free_blocks, " free");
}

}  // namespace inflight
