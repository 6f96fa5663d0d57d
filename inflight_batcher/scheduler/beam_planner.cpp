#include <algorithm>
#include <utility>

#include "inflight/error.h"
#include "inflight_batcher/scheduler/scheduler_impl.h"

namespace inflight {
namespace {

using Lane = ScheduledBeams::Lane;

// The first lane has the blocks of the sequence itself; the others' ids are beyond those of sequences.
constexpr int kLaneShift = 48;

SequenceId table_of(SequenceId id, int lane) { return id | static_cast<SequenceId>(lane) << kLaneShift; }

bool is_source(const ScheduledBeams& beams, int lane) {
  return std::any_of(beams.lanes.begin(), beams.lanes.end(), [&](const Lane& other) { return other.source == lane; });
}

/// Gives each choice a lane: the first of a parent's stays in its lane, the others take those without one.
std::vector<int> choose_lanes(const ScheduledBeams& beams, std::span<const Scheduler::BeamChoice> choices) {
  std::vector<bool> taken(beams.lanes.size());
  std::vector<int> out;
  for (const auto& choice : choices) {
    out.push_back(taken[choice.lane] ? -1 : choice.lane);
    taken[choice.lane] = true;
  }
  for (int& lane : out) {
    if (lane >= 0) continue;
    lane = static_cast<int>(std::find(taken.begin(), taken.end(), false) - taken.begin());
    taken[lane] = true;
  }
  return out;
}

/// Those in lanes of their own get them first: they take over tokens that their parent's lane is about to add to.
void move_tokens(ScheduledBeams& beams, std::span<const Scheduler::BeamChoice> choices, const std::vector<int>& lanes) {
  std::vector<bool> lives(beams.lanes.size());
  for (size_t i = 0; i < choices.size(); ++i) {
    lives[lanes[i]] = true;
    if (lanes[i] == choices[i].lane) continue;
    const Lane& parent = beams.lanes[choices[i].lane];
    Lane& lane = beams.lanes[lanes[i]];
    lane.tokens.assign(parent.tokens.begin(), parent.tokens.end());
    lane.tokens.push_back(choices[i].token);
    lane.computed = lane.planned = parent.computed;
    lane.source = choices[i].lane;
    lane.moved = true;
  }
  for (size_t i = 0; i < choices.size(); ++i)
    if (lanes[i] == choices[i].lane) beams.lanes[lanes[i]].tokens.push_back(choices[i].token);
  for (size_t lane = 0; lane < lives.size(); ++lane)
    if (!lives[lane]) beams.lanes[lane].tokens.clear();
}

}  // namespace

std::vector<int> Scheduler::Impl::continue_beams(SequenceId id, std::span<const BeamChoice> choices) {
  const auto found = sequences_.find(id);
  check(found != sequences_.end() && !found->second.finished && found->second.beams, ErrorCode::kInternal,
        "no live sequence ", id, " with beams");
  Sequence& sequence = found->second;
  ScheduledBeams& beams = *sequence.beams;
  check(!sequence.in_flight() && sequence.computed == sequence.size(), ErrorCode::kInternal, "the beams of sequence ",
        id, " are continued before they are computed");
  check(!choices.empty() && static_cast<int>(choices.size()) <= beams.width(), ErrorCode::kInternal, "sequence ", id,
        " is continued by ", choices.size(), " beams, wanted 1 to ", beams.width());
  if (!beams.spread) {
    for (Lane& lane : beams.lanes) lane.tokens.reserve(sequence.max_total_tokens);
    beams.lanes[0].tokens.assign(sequence.tokens.begin(), sequence.tokens.end());
    beams.lanes[0].computed = beams.lanes[0].planned = sequence.computed;
    beams.spread = true;
  }
  for (const BeamChoice& choice : choices)
    check(choice.lane >= 0 && choice.lane < beams.width() && beams.lanes[choice.lane].lives() &&
              beams.lanes[choice.lane].pending() == 0,
          ErrorCode::kInternal, "sequence ", id, " has no computed beam in lane ", choice.lane);
  const std::vector<int> lanes = choose_lanes(beams, choices);
  move_tokens(beams, choices, lanes);
  beams.laid_out = false;
  return lanes;
}

bool Scheduler::Impl::can_advance_beams(const Sequence& sequence) const {
  const auto waits = [](const Lane& lane) { return lane.lives() && lane.pending() > 0; };
  return sequence.has_beams() && !sequence.in_flight() && !sequence.has_all_tokens() &&
         std::any_of(sequence.beams->lanes.begin(), sequence.beams->lanes.end(), waits);
}

/// One token for each beam, or, after a pause, a place among the contexts for those that have more to compute.
void Scheduler::Impl::plan_beams(Sequence& sequence, Step& step) {
  ScheduledBeams& beams = *sequence.beams;
  if (!has_room(step) || step.num_tokens + beams.living() > config_.max_num_tokens) return;
  if (!beams.laid_out && !lay_out(sequence, step)) return;
  const auto recomputes = [](const Lane& lane) { return lane.lives() && lane.pending() > 1; };
  if (std::any_of(beams.lanes.begin(), beams.lanes.end(), recomputes)) return contexts_.push_back(&sequence);
  for (int lane = 0; lane < beams.width(); ++lane)
    if (beams.lanes[lane].lives()) push_beam(sequence, lane, 1, step);
}

/// Brings the tables in line with the beams as they were chosen, with room for all their tokens.
bool Scheduler::Impl::lay_out(Sequence& sequence, Step& step) {
  drop_tables(sequence, false);
  if (!make_room(sequence, blocks_to_lay_out(*sequence.beams), step)) return false;
  take_tables(sequence);
  drop_tables(sequence, true);
  sequence.beams->laid_out = true;
  return true;
}

int Scheduler::Impl::blocks_to_lay_out(const ScheduledBeams& beams) const {
  int blocks = 0;
  for (const Lane& lane : beams.lanes) {
    if (!lane.lives()) continue;
    const int wanted = kv_cache_.blocks_for(static_cast<int>(lane.tokens.size()));
    // What a lane has computed fills its blocks: it grows by a block at a time.
    blocks += wanted - (lane.source < 0 ? kv_cache_.blocks_for(lane.planned) : lane.computed / block_size_);
  }
  return blocks;
}

/// Gives back the tables of lanes whose beam has ended or comes from another lane; those that others are yet to be
/// forked off only with `sources`.
void Scheduler::Impl::drop_tables(Sequence& sequence, bool sources) {
  ScheduledBeams& beams = *sequence.beams;
  const int before = kv_cache_.stats().free_blocks;
  for (int i = 0; i < beams.width(); ++i) {
    Lane& lane = beams.lanes[i];
    if (!lane.has_table || (lane.lives() && lane.source < 0) || (!sources && is_source(beams, i))) continue;
    kv_cache_.remove_sequence(table_of(sequence.id, i), false);
    lane.has_table = false;
  }
  note_blocks(sequence, sequence.blocks + before - kv_cache_.stats().free_blocks);
}

void Scheduler::Impl::take_tables(Sequence& sequence) {
  ScheduledBeams& beams = *sequence.beams;
  const int before = kv_cache_.stats().free_blocks;
  for (int i = 0; i < beams.width(); ++i) {
    Lane& lane = beams.lanes[i];
    if (!lane.lives()) continue;
    const SequenceId table = table_of(sequence.id, i);
    const int size = static_cast<int>(lane.tokens.size());
    const bool taken = lane.source < 0 ? kv_cache_.extend(table, size)
                                       : kv_cache_.fork(table_of(sequence.id, lane.source), table, lane.computed, size);
    check(taken, ErrorCode::kInternal, "KV cache refused beam ", i, " of sequence ", sequence.id,
          " after there were enough blocks");
    lane.has_table = true;
    lane.source = -1;
  }
  note_blocks(sequence, sequence.blocks + before - kv_cache_.stats().free_blocks);
}

/// After a pause: all tokens of the beams but the last, which they compute side by side.
void Scheduler::Impl::plan_recomputation(Sequence& sequence, Step& step) {
  for (int i = 0; i < sequence.beams->width(); ++i) {
    const Lane& lane = sequence.beams->lanes[i];
    const int missing = lane.lives() ? lane.pending() - 1 : 0;
    if (missing > 0 && has_room(step))
      push_beam(sequence, i, std::min(missing, config_.max_num_tokens - step.num_tokens), step);
  }
}

void Scheduler::Impl::push_beam(Sequence& sequence, int index, int count, Step& step) {
  ScheduledBeams& beams = *sequence.beams;
  Lane& lane = beams.lanes[index];
  step.num_tokens += count;
  Item& item = step.items.emplace_back();
  item.id = sequence.id;
  item.table = table_of(sequence.id, index);
  item.lane = index;
  item.slot = lane.slot;
  item.first = lane.planned;
  item.count = count;
  item.samples = lane.pending() == count;
  item.is_context = !item.samples;
  item.moved = std::exchange(lane.moved, false);
  lane.planned += count;
  ++sequence.items_in_flight;
  sequence.samples_in_flight += item.samples;
}

void Scheduler::Impl::complete_beam(Sequence& sequence, const Item& item) {
  Lane& lane = sequence.beams->lanes[item.lane];
  check(sequence.in_flight() && lane.computed == item.first, ErrorCode::kInternal, "beam ", item.lane, " of sequence ",
        item.id, " completes tokens from ", item.first, ", in flight are those from ", lane.computed);
  --sequence.items_in_flight;
  sequence.samples_in_flight -= item.samples;
  lane.computed += item.count;
  if (sequence.finished) release_if_landed(sequence);
}

/// At an admission. Beams that were paused fork off the first lane once it has the prompt.
void Scheduler::Impl::take_slots(Sequence& sequence) {
  const auto take = [&] {
    by_slot_[free_slots_.back()] = &sequence;
    const int slot = free_slots_.back();
    free_slots_.pop_back();
    return slot;
  };
  sequence.slot = take();
  if (!sequence.beams) return;
  ScheduledBeams& beams = *sequence.beams;
  for (Lane& lane : beams.lanes) {
    const bool is_first = &lane == &beams.lanes[0];
    lane.slot = is_first ? sequence.slot : take();
    lane.has_table = is_first;
    lane.source = is_first || !lane.lives() ? -1 : 0;
    lane.moved = !is_first;
    lane.computed = lane.planned = beams.spread ? sequence.size() : 0;
  }
  beams.laid_out = false;
}

/// What the beams have computed stays findable. (A fork that has been laid out was copied before the step planned
/// then.)
void Scheduler::Impl::leave_beams(Sequence& sequence) {
  ScheduledBeams& beams = *sequence.beams;
  const bool has_prompt = beams.spread && sequence.computed == sequence.size();
  for (int i = 0; i < beams.width(); ++i) {
    const Lane& lane = beams.lanes[i];
    if (lane.has_table && lane.lives() && lane.source < 0 && has_prompt)
      kv_cache_.mark_computed(table_of(sequence.id, i), std::span(lane.tokens).first(lane.computed));
  }
  for (int i = beams.width() - 1; i >= 0; --i) {
    Lane& lane = beams.lanes[i];
    if (std::exchange(lane.has_table, false)) kv_cache_.remove_sequence(table_of(sequence.id, i), lane.source < 0);
    by_slot_[lane.slot] = nullptr;
    free_slots_.push_back(std::exchange(lane.slot, -1));
  }
  sequence.slot = -1;
}

void Scheduler::Impl::check_beams(const Sequence& sequence) const {
  const ScheduledBeams& beams = *sequence.beams;
  std::vector<int32_t> held;
  for (int i = 0; i < beams.width(); ++i) {
    const Lane& lane = beams.lanes[i];
    check(by_slot_[lane.slot] == &sequence, ErrorCode::kInternal, "slot ", lane.slot, " is not that of ", sequence.id);
    if (!lane.has_table) continue;
    const auto table = kv_cache_.block_table(table_of(sequence.id, i));
    held.insert(held.end(), table.begin(), table.end());
    if (!lane.lives() || lane.source >= 0 || !beams.laid_out) continue;
    check(lane.planned <= static_cast<int>(table.size()) * block_size_, ErrorCode::kInternal, "beam ", i,
          " of sequence ", sequence.id, " is planned up to ", lane.planned, " tokens, its KV blocks hold ",
          table.size() * block_size_);
    check(static_cast<int>(lane.tokens.size()) == beams.size(), ErrorCode::kInternal, "beam ", i, " of sequence ",
          sequence.id, " has ", lane.tokens.size(), " tokens, another one ", beams.size());
  }
  std::sort(held.begin(), held.end());
  const auto distinct = std::unique(held.begin(), held.end()) - held.begin();
  check(distinct == sequence.blocks, ErrorCode::kInternal, "the beams of sequence ", sequence.id, " count ",
        sequence.blocks, " KV blocks, their tables have ", distinct);
  check(sequence.finished || !is_guaranteed() || sequence.blocks + sequence.reserved == blocks_wanted(sequence),
        ErrorCode::kInternal, "the beams of sequence ", sequence.id, " have ", sequence.blocks,
        " KV blocks and reserve ", sequence.reserved, ", wanted ", blocks_wanted(sequence), " together");
}

}  // namespace inflight
