#include <algorithm>

#include "inflight_batcher/executor/executor_impl.h"
#include "inflight_batcher/executor/request_checks.h"

namespace inflight {

namespace {

void note_admission(PerfMetrics& perf, const KvCacheManager::Admission& admission) {
  if (perf.first_scheduled_time_ns != 0) return;  // counted once: a pause is not a second admission
  perf.first_scheduled_time_ns = steady_ns();
  perf.kv_alloc_new_blocks = perf.kv_alloc_total_blocks = admission.new_blocks;
  perf.kv_reused_blocks = admission.reused_blocks;
}

}  // namespace

void Executor::Impl::loop() {
  for (bool running = true; running;) {
    std::exception_ptr failure;
    try {
      running = take_turn();
    } catch (...) {
      failure = std::current_exception();
    }
    if (failure && !start_over(failure)) return;
  }
  stop_all(nullptr);
}

bool Executor::Impl::take_turn() {
  if (!take_inbox()) return false;
  expire_deadlines();
  const bool fed = feed_engine();
  deliver();
  const bool enough = !fed || static_cast<int>(in_flight_.size()) == engine_.max_steps_in_flight();
  if (enough && !in_flight_.empty()) finish_oldest_step();
  return true;
}

// The statistics first: who has a result finds it counted.
void Executor::Impl::deliver() {
  publish_stats();
  responses_.push(outgoing_);
}

// Blocks while there is nothing to do. False when the executor stops.
bool Executor::Impl::take_inbox() {
  const bool idle = in_flight_.empty() && sequences_.empty();
  if (idle) deliver();
  {
    std::unique_lock lock(mutex_);
    if (idle) wake_.wait(lock, [&] { return stopping_ || !inbox_.requests.empty() || !inbox_.ends.empty(); });
    if (stopping_) return false;
    std::swap(taken_, inbox_);
    // Until the next snapshot they would be neither in the inbox nor among the waiting.
    for (const auto& request : taken_.requests) {
      snapshot_.waiting_requests += request->sequences_left;
      snapshot_.active_requests += request->sequences_left;
    }
  }
  for (const auto& request : taken_.requests) admit(request);
  for (const EndOrder& order : taken_.ends) end_now(order);
  taken_.requests.clear();
  taken_.ends.clear();
  return true;
}

// All of the request's sequences, or none.
const std::vector<Executor::Impl::SequencePtr>& Executor::Impl::register_request(
    const std::shared_ptr<RequestState>& request) {
  std::vector<SequencePtr> sequences;
  for (int i = 0; i < request->request.sampling.num_return_sequences; ++i) {
    auto sequence = std::make_shared<SequenceState>();
    sequence->id = next_sequence_++;
    sequence->index = i;
    sequence->request = request;
    sequence->sampling = sampling_row(*request, i);
    sequence->perf.arrival_time_ns = request->arrival_ns;
    if (request->request.sampling.beam_width > 1) start_beams(*sequence);
    sequences.push_back(sequence);
  }
  return requests_.emplace(request->id, std::move(sequences)).first->second;
}

void Executor::Impl::admit(const std::shared_ptr<RequestState>& request) {
  const std::vector<SequencePtr>& sequences = register_request(request);
  for (const SequencePtr& sequence : sequences) sequences_[sequence->id] = sequence;
  next_deadline_ = std::min(next_deadline_, request->deadline);
  add_to_scheduler(sequences[0]);
  // The other sequences start when the first one's prompt is in the cache, so that they find its blocks.
  const std::vector<SequencePtr> others(sequences.begin() + 1, sequences.end());
  if (config_.kv_cache.enable_block_reuse && !others.empty()) {
    siblings_[request->id] = others;
  } else {
    for (const SequencePtr& sequence : others) add_to_scheduler(sequence);
  }
}

void Executor::Impl::add_to_scheduler(const SequencePtr& sequence) {
  const Request& request = sequence->request->request;
  const bool reuse = !request.output.context_logits && request.output.additional_outputs.empty();
  const bool plan_ahead = request.sampling.top_p_decay == 1.0f;  // the decay depends on the token before
  scheduler_.add({sequence->id, request.input_ids, sequence->prompt_length() + request.max_tokens, request.priority,
                  reuse, sequence->request->kv_policy, request.draft_tokens, request.sampling.beam_width, plan_ahead});
}

void Executor::Impl::release_siblings(const SequencePtr& first) {
  const auto found = siblings_.find(first->request->id);
  if (found == siblings_.end()) return;
  const std::vector<SequencePtr> others = std::move(found->second);
  siblings_.erase(found);
  for (const SequencePtr& sequence : others)
    if (!sequence->finished) add_to_scheduler(sequence);
}

void Executor::Impl::end_now(const EndOrder& order) {
  const auto found = requests_.find(order.id);
  if (found == requests_.end()) return;
  const bool cancelled = order.failure.empty();
  const std::vector<SequencePtr> sequences = found->second;
  for (const SequencePtr& sequence : sequences) {
    if (sequence->finished || sequence->index != order.sequence_index.value_or(sequence->index)) continue;
    RequestState& request = *sequence->request;
    request.cancelled |= cancelled && (!order.sequence_index || request.sequences_left == 1);
    if (cancelled)
      fail_sequence(sequence, ErrorCode::kCancelled, RequestState::kCancelled);
    else
      fail_sequence(sequence, ErrorCode::kInternal, order.failure);
  }
}

void Executor::Impl::expire_deadlines() {
  if (next_deadline_ == std::chrono::steady_clock::time_point::max()) return;
  const auto now = std::chrono::steady_clock::now();
  if (now < next_deadline_) return;
  next_deadline_ = std::chrono::steady_clock::time_point::max();
  std::vector<SequencePtr> late;
  for (const auto& [id, sequence] : sequences_) {
    const auto deadline = sequence->request->deadline;
    if (deadline <= now)
      late.push_back(sequence);
    else
      next_deadline_ = std::min(next_deadline_, deadline);
  }
  for (const SequencePtr& sequence : late) end_sequence(sequence, FinishReason::kTimedOut);
}

std::unique_ptr<StepInFlight> Executor::Impl::take_spare_step() {
  if (spare_steps_.empty()) return std::make_unique<StepInFlight>();
  std::unique_ptr<StepInFlight> flight = std::move(spare_steps_.back());
  spare_steps_.pop_back();
  return flight;
}

// Plans and submits one step; false when there is nothing to do beside what is under way.
bool Executor::Impl::feed_engine() {
  std::unique_ptr<StepInFlight> flight = take_spare_step();
  kv_cache_.set_time(steady_ns() / 1'000'000);
  scheduler_.plan_into(flight->plan);
  counters_.preemptions += static_cast<int64_t>(flight->plan.paused.size());
  if (flight->plan.items.empty()) {
    const Scheduler::Counts counts = scheduler_.counts();
    check(!in_flight_.empty() || counts.waiting + counts.running == 0, ErrorCode::kInternal,
          "the scheduler plans nothing although ", counts.waiting, " sequences wait and ", counts.running, " run");
    spare_steps_.push_back(std::move(flight));
    return false;
  }
  collect_sequences(*flight);
  build_step(*flight, scheduler_, kv_cache_);
  in_flight_.push_back(std::move(flight));  // first: what the ranks have must stay
  engine_.submit(in_flight_.back()->step);
  update_stats(*in_flight_.back());
  return true;
}

void Executor::Impl::collect_sequences(StepInFlight& flight) {
  for (const Scheduler::Item& item : flight.plan.items) {
    SequencePtr& sequence = by_slot_[item.slot];
    // The lanes of beams take their slots as the search spreads.
    if (item.admitted || !sequence || sequence->id != item.id) sequence = sequences_.at(item.id);
    if (item.admitted) {
      sequence->slot = item.slot;
      note_admission(sequence->perf, item.admission);
    }
    flight.sequences.push_back(sequence);
  }
}

void Executor::Impl::finish_oldest_step() {
  try {
    engine_.wait(in_flight_.front()->step);
  } catch (const std::exception& e) {
    fail_steps_in_flight(e.what());
    return;
  }
  std::unique_ptr<StepInFlight> flight = std::move(in_flight_.front());
  in_flight_.pop_front();
  step_end_ns_ = steady_ns();
  match_drafts(*flight);
  take_logits(*flight);
  for (size_t item = 0; item < flight->plan.items.size(); ++item) handle_item(*flight, item);
  flight->sequences.clear();  // an idle executor holds on to no request
  spare_steps_.push_back(std::move(flight));
}

// A step that failed has left the cache of its sequences undefined: they fail, everybody else goes on.
void Executor::Impl::fail_steps_in_flight(const std::string& why) {
  for (const auto& flight : in_flight_) {
    try {
      engine_.wait(flight->step);
    } catch (const std::exception&) {
      continue;  // the first failure is the reason; the others follow from it
    }
  }
  engine_.recover();
  for (const auto& flight : in_flight_) {
    for (size_t item = 0; item < flight->plan.items.size(); ++item) {
      const SequencePtr& sequence = flight->sequences[item];
      if (!sequence->finished) fail_sequence(sequence, ErrorCode::kInternal, "the engine failed: " + why);
      scheduler_.complete(flight->plan.items[item], std::nullopt);
    }
  }
  in_flight_.clear();
  kv_cache_.clear_cache();  // copies of these steps may not have run, and what they promised is not there
}

void Executor::Impl::update_stats(const StepInFlight& flight) {
  ExecutorStats& stats = counters_;
  ++stats.steps;
  stats.timestamp_us =
      std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::system_clock::now().time_since_epoch())
          .count();
  stats.scheduled_requests = static_cast<int>(flight.plan.items.size());
  stats.paused_requests = static_cast<int>(flight.plan.paused.size());
  stats.context_requests = stats.context_tokens = 0;
  for (const Scheduler::Item& item : flight.plan.items) {
    if (item.admitted) stats.tokens_reused += item.admission.reused_tokens;
    if (!item.is_context) continue;
    ++stats.context_requests;
    stats.context_tokens += item.count - static_cast<int>(item.drafts.size());
  }
  stats.generation_requests = stats.scheduled_requests - stats.context_requests;
  stats.tokens_prefilled += stats.context_tokens;
  stats.micro_batch = static_cast<int>(stats.steps % config_.pipeline_parallel);
}

void Executor::Impl::publish_stats() {
  const KvCacheManager::Stats kv = kv_cache_.stats();
  counters_.kv_blocks_max = kv.max_blocks;
  counters_.kv_blocks_free = kv.free_blocks;
  counters_.kv_blocks_used = kv.used_blocks;
  counters_.kv_blocks_reused = kv.reused_blocks;
  counters_.kv_host_blocks_max = kv.max_host_blocks;
  counters_.kv_host_blocks_used = kv.used_host_blocks;
  counters_.kv_blocks_offloaded = kv.offloaded_blocks;
  counters_.kv_blocks_onboarded = kv.onboarded_blocks;
  counters_.active_requests = static_cast<int>(sequences_.size());
  const Scheduler::Counts counts = scheduler_.counts();
  counters_.waiting_requests = static_cast<int>(sequences_.size()) - counts.running;
  if (sequences_.empty())
    counters_.scheduled_requests = counters_.context_requests = counters_.generation_requests =
        counters_.context_tokens = 0;
  std::lock_guard lock(mutex_);
  snapshot_ = counters_;
  slots_taken_ = counts.slots;
}

}  // namespace inflight
