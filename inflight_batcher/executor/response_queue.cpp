#include "inflight_batcher/executor/response_queue.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>

#include "inflight/error.h"
#include "inflight_batcher/executor/insist.h"

namespace inflight {

namespace {

void send_failure(RequestState& request, Result&& result) {
  result.failed = true;
  result.error_code = ErrorCode::kInternal;
  insist([&] { result.error = request.callback_failure; });
  try {
    request.callback(std::move(result));
  } catch (...) {
    // Whoever would hear of it has just been told.
  }
}

constexpr auto is_hanging = [](const auto& worker) { return worker->hanging != nullptr; };

template <typename Lock, typename Action>
void unlocked(Lock& lock, Action&& action) {
  lock.unlock();
  action();
  lock.lock();
}

}  // namespace

ResponseQueue::ResponseQueue(std::function<void(RequestId, const std::string&)> end_request,
                             std::chrono::nanoseconds patience)
    : end_request_(std::move(end_request)), patience_(patience) {
  const Lock lock(mutex_);
  start_worker();
}

void ResponseQueue::stop() {
  {
    Lock lock(mutex_);
    stopping_ = true;
    wake_.notify_all();
    wake_.wait(lock, [&] { return finished_; });
  }
  for (const auto& worker : workers_)
    if (worker->thread.joinable()) worker->thread.join();
}

void ResponseQueue::push(std::vector<Delivery>& deliveries) {
  if (deliveries.empty()) return;
  {
    std::lock_guard lock(mutex_);
    if (queue_.empty())
      queue_.swap(deliveries);
    else
      queue_.insert(queue_.end(), std::make_move_iterator(deliveries.begin()),
                    std::make_move_iterator(deliveries.end()));
  }
  deliveries.clear();
  wake_.notify_one();
}

double ResponseQueue::delivery_seconds() const {
  const std::lock_guard lock(mutex_);
  const int64_t now = steady_ns();
  int64_t longest = 0;
  for (const auto& worker : workers_) {
    const int64_t began = std::abs(worker->began_ns);
    if (began != 0) longest = std::max(longest, now - began);
  }
  return static_cast<double>(longest) * 1e-9;
}

void ResponseQueue::start_worker() {
  std::erase_if(workers_, [](const auto& worker) {
    if (worker->ended) worker->thread.join();
    return worker->ended;
  });
  if (workers_.size() > kMaxHanging) return;
  workers_.reserve(workers_.size() + 1);
  auto worker = std::make_unique<Worker>();
  worker->thread = std::thread([this, &self = *worker] { run(self); });
  workers_.push_back(std::move(worker));
  standby_ = true;
}

void ResponseQueue::run(Worker& worker) {
  Lock lock(mutex_);
  while (stand_by(worker, lock)) {
    lead(worker, lock);
    if (standby_) break;
    standby_ = true;
  }
  worker.ended = true;
}

/// Waits until the lead is its own; false: it is needed no more. While nothing is at work, it just sleeps.
bool ResponseQueue::stand_by(Worker& worker, Lock& lock) {
  while (!finished_ && !take_lead(worker)) {
    watching_ = at_work_;
    if (at_work_) {
      const int64_t began = leader_->began_ns;
      const std::chrono::nanoseconds from(began > 0 ? began : steady_ns());
      wake_standby_.wait_until(lock, std::chrono::steady_clock::time_point(from + patience_now()));
    } else {
      wake_standby_.wait(lock);
    }
  }
  standby_ = watching_ = false;
  return !finished_;
}

bool ResponseQueue::take_lead(Worker& worker) {
  if (leader_ != nullptr && !depose(*leader_)) return false;
  leader_ = &worker;
  return true;
}

std::chrono::nanoseconds ResponseQueue::patience_now() const {
  const auto hanging = std::count_if(workers_.begin(), workers_.end(), is_hanging);
  return patience_ / ((1 + hanging) * (1 + hanging));
}

/// If its callback hangs: what it has not begun is queued again, before all else.
bool ResponseQueue::depose(Worker& leader) {
  int64_t began = leader.began_ns;
  if (began <= 0 || steady_ns() - began < patience_now().count()) return false;
  if (!leader.began_ns.compare_exchange_strong(began, -began)) return false;  // it has just returned
  leader.hanging = leader.batch[leader.at].request;
  const auto rest = leader.batch.begin() + static_cast<std::ptrdiff_t>(leader.at) + 1;
  insist([&] {
    queue_.insert(queue_.begin(), std::make_move_iterator(rest), std::make_move_iterator(leader.batch.end()));
  });
  return true;
}

/// Until there is nothing more to deliver, ever, or its callback has hung.
void ResponseQueue::lead(Worker& worker, Lock& lock) {
  while (take_batch(worker, lock)) {
    bool leads = true;
    unlocked(lock, [&] { leads = deliver_batch(worker); });
    if (!leads) return deliver_set_aside(worker, lock);
  }
}

bool ResponseQueue::take_batch(Worker& worker, Lock& lock) {
  while (worker.batch.empty()) {
    at_work_ = false;
    wake_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
    if (queue_.empty()) {
      finished_ = true;
      wake_.notify_all();
      wake_standby_.notify_all();
      return false;
    }
    sort_queue(worker);
  }
  at_work_ = true;
  require_standby();
  return true;
}

/// Hands out what is queued: to the leader, or to the thread that hangs in the result's request.
void ResponseQueue::sort_queue(Worker& leader) {
  if (std::none_of(workers_.begin(), workers_.end(), is_hanging)) return leader.batch.swap(queue_);
  for (Delivery& delivery : queue_) {
    const auto owner = std::find_if(workers_.begin(), workers_.end(),
                                    [&](const auto& worker) { return worker->hanging == delivery.request; });
    std::vector<Delivery>& target = owner == workers_.end() ? leader.batch : (*owner)->set_aside;
    insist([&] { target.push_back(std::move(delivery)); });
  }
  queue_.clear();
}

void ResponseQueue::require_standby() {
  if (watching_) return;
  if (standby_) return wake_standby_.notify_one();
  try {
    start_worker();
  } catch (const std::exception&) {
    // As long as no thread can be had, a callback that hangs is waited for.
  }
}

/// False if another thread has taken the lead meanwhile, and the rest of the batch with it.
bool ResponseQueue::deliver_batch(Worker& worker) {
  for (worker.at = 0; worker.at < worker.batch.size(); ++worker.at) {
    Delivery& delivery = worker.batch[worker.at];
    worker.began_ns.store(steady_ns(), std::memory_order_release);
    deliver(delivery);
    if (worker.began_ns.exchange(0) < 0) return false;
    delivery.request.reset();
  }
  worker.batch.clear();
  return true;
}

/// What has come for the request while its callback hung; then others may deliver its results again.
void ResponseQueue::deliver_set_aside(Worker& worker, Lock& lock) {
  // Callbacks are destroyed without the lock: nobody knows what they hold.
  unlocked(lock, [&] { worker.batch.clear(); });
  while (!worker.set_aside.empty()) {
    worker.batch.swap(worker.set_aside);
    unlocked(lock, [&] { deliver_batch(worker); });
  }
  auto request = std::move(worker.hanging);
  unlocked(lock, [&] { request.reset(); });
}

void ResponseQueue::deliver(Delivery& delivery) {
  RequestState& request = *delivery.request;
  Result end;  // of the sequence, as far as the callback throws
  end.request_id = delivery.result.request_id;
  end.sequence_index = delivery.result.sequence_index;
  end.sequence_final = delivery.result.sequence_final;
  end.request_final = delivery.result.request_final;
  if (request.callback_failure.empty()) {
    try {
      return request.callback(std::move(delivery.result));
    } catch (...) {
      const std::exception_ptr failure = std::current_exception();
      insist([&] { request.callback_failure = concat("the callback for results failed: ", text_of(failure)); });
    }
    if (!end.request_final) insist([&] { end_request_(request.id, request.callback_failure); });
  }
  if (end.sequence_final) send_failure(request, std::move(end));
}

}  // namespace inflight
