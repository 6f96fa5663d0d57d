#include "inflight_batcher/api/drafted_answer.h"

#include <utility>

#include "inflight_batcher/executor/answer_rounds.h"
#include "inflight_batcher/executor/executor_impl.h"
#include "inflight_batcher/executor/insist.h"
#include "inflight_batcher/executor/request_state.h"

namespace inflight {

std::shared_ptr<DraftedAnswer> DraftedAnswer::submit(Executor& target, Executor& draft, Request request,
                                                     const DraftingConfig& config, Executor::Callback callback) {
  auto rounds = std::make_unique<AnswerRounds>(std::move(request), config, target, draft);
  target.validate(rounds->example());
  std::shared_ptr<DraftedAnswer> answer(new DraftedAnswer(target, draft, std::move(rounds), std::move(callback)));
  if (!answer->ask_draft()) answer->ask_target();
  return answer;
}

DraftedAnswer::DraftedAnswer(Executor& target, Executor& draft, std::unique_ptr<AnswerRounds> rounds,
                             Executor::Callback callback)
    : target_(target.impl_), draft_(draft.impl_), rounds_(std::move(rounds)), callback_(std::move(callback)) {}

DraftedAnswer::~DraftedAnswer() = default;

void DraftedAnswer::cancel() {
  std::lock_guard lock(mutex_);
  cancelled_ = true;
  if (const auto model = at_work_.lock()) model->end({id_, std::nullopt, {}});
}

// False where the target has to go on without drafts.
bool DraftedAnswer::ask_draft() {
  if (rounds_->drafts_wanted() == 0) return false;
  try {
    ask(draft_, rounds_->draft_request(), &DraftedAnswer::take_drafts);
    return true;
  } catch (const Error& refusal) {
    // A full queue is a matter of this round; what is too long now stays too long.
    if (refusal.code() != ErrorCode::kUnavailable || draft_.expired()) rounds_->draft_no_more();
    return false;
  }
}

void DraftedAnswer::ask_target() { ask(target_, rounds_->target_request(), &DraftedAnswer::take_round); }

// The result may be here, and the next request asked, before submit returns; and a cancellation may come just then.
void DraftedAnswer::ask(const Model& model, Request request, Take take) {
  const auto executor = model.lock();
  check(executor != nullptr, ErrorCode::kUnavailable, "the executor is shutting down");
  uint64_t number = 0;
  {
    std::lock_guard lock(mutex_);
    number = ++asked_;
  }
  const bool is_admitted = take == &DraftedAnswer::take_round;
  const auto deliver = [self = shared_from_this(), take](Result&& result) {
    self->take_guarded(take, std::move(result));
  };
  const RequestId id = executor->submit(std::move(request), deliver, is_admitted);
  std::lock_guard lock(mutex_);
  if (number != asked_) return;
  at_work_ = model;
  id_ = id;
  if (cancelled_) insist([&] { executor->end({id, std::nullopt, {}}); });
}

// The executor answers an exception with one more result, a failure: it ends the answer, whichever model gives it.
void DraftedAnswer::take_guarded(Take take, Result&& result) {
  if (threw_) {
    rounds_->describe(result);
    return finish(std::move(result));
  }
  try {
    (this->*take)(std::move(result));
  } catch (...) {
    threw_ = true;
    throw;
  }
}

void DraftedAnswer::take_drafts(Result&& result) {
  rounds_->take_drafts(std::move(result));
  go_on(false);
}

void DraftedAnswer::take_round(Result&& result) {
  const bool round_ends = result.request_final;
  rounds_->take(result);
  if (result.request_final) return finish(std::move(result));
  callback_(std::move(result));
  if (round_ends) go_on(true);
}

void DraftedAnswer::go_on(bool with_drafts) {
  if (ends_between_rounds() || (with_drafts && ask_draft())) return;
  try {
    ask_target();
  } catch (const Error& refusal) {
    finish(rounds_->failed(refusal.code(), refusal.what()));
  }
}

bool DraftedAnswer::ends_between_rounds() {
  const auto is_cancelled = [&] {
    std::lock_guard lock(mutex_);
    return cancelled_;
  };
  if (is_cancelled()) {
    finish(rounds_->failed(ErrorCode::kCancelled, RequestState::kCancelled));
  } else if (rounds_->expired()) {
    finish(rounds_->timed_out());
  } else {
    return false;
  }
  return true;
}

// A callback is kept only as long as it may be called: it may hold the answer.
void DraftedAnswer::finish(Result&& result) {
  if (threw_) return std::exchange(callback_, {})(std::move(result));
  callback_(std::move(result));
  callback_ = {};
}

}  // namespace inflight
