#include <algorithm>

#include "inflight_batcher/executor/executor_impl.h"
#include "inflight_batcher/executor/insist.h"

namespace inflight {

// A turn that failed (no memory, a broken promise of the books) may have left any change half made. So nothing of it is
// kept: every live request ends with an error, and scheduler, cache and engine start anew. False where the engine is at
// its end.
bool Executor::Impl::start_over(const std::exception_ptr& failure) {
  try {
    insist([&] {
      wait_for_steps();
      engine_.recover();
      end_live_requests(ErrorCode::kInternal, "the executor had to start over: " + text_of(failure));
    });
    return true;
  } catch (...) {
    stop_all(std::current_exception());
    return false;
  }
}

// No request is taken any more; those that wait in the inbox end like the others. No failure: an orderly end.
void Executor::Impl::stop_all(const std::exception_ptr& failure) {
  insist([&] {
    const ErrorCode code = failure ? ErrorCode::kInternal : ErrorCode::kUnavailable;
    const std::string text = failure ? text_of(failure) : "the executor is shutting down";
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
      if (code == ErrorCode::kInternal) broken_ = text;
      taken_.requests.insert(taken_.requests.end(), inbox_.requests.begin(), inbox_.requests.end());
      inbox_.requests.clear();
    }
    wait_for_steps();
    end_live_requests(code, text);
  });
}

void Executor::Impl::wait_for_steps() {
  for (const auto& flight : in_flight_) {
    try {
      engine_.wait(flight->step);
    } catch (...) {
      continue;  // its requests fail anyway
    }
  }
}

// May be repeated until it succeeds; the ranks are at rest.
void Executor::Impl::end_live_requests(ErrorCode code, const std::string& why) {
  in_flight_.clear();
  spare_steps_.clear();
  siblings_.clear();
  std::fill(by_slot_.begin(), by_slot_.end(), nullptr);
  kv_cache_.reset();
  scheduler_.reset();
  // A result in the making; a final one is complete.
  if (!outgoing_.empty() && !outgoing_.back().result.sequence_final) outgoing_.pop_back();
  for (const auto& request : taken_.requests)
    if (request->sequences_left > 0 && !requests_.contains(request->id)) register_request(request);
  taken_ = {};
  std::vector<SequencePtr> live;
  for (const auto& [id, sequences] : requests_)
    std::copy_if(sequences.begin(), sequences.end(), std::back_inserter(live),
                 [](const SequencePtr& sequence) { return !sequence->finished; });
  for (const SequencePtr& sequence : live) fail_sequence(sequence, code, why);
  sequences_.clear();
  requests_.clear();
  deliver();
}

}  // namespace inflight
