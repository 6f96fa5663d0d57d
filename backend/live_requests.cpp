#include "backend/live_requests.h"

#include "backend/live_request.h"

namespace inflight::backend {

LiveRequests::LiveRequests(std::chrono::milliseconds check_period)
    : check_period_(check_period), monitor_([this] { monitor(); }) {}

LiveRequests::~LiveRequests() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  monitor_.join();
}

void LiveRequests::add(std::shared_ptr<LiveRequest> request) {
  const LiveRequest* key = request.get();
  const std::lock_guard lock(mutex_);
  requests_.emplace(key, std::move(request));
  changed_.notify_all();
}

void LiveRequests::remove(const LiveRequest& request) {
  const std::lock_guard lock(mutex_);
  requests_.erase(&request);
}

void LiveRequests::stop(const std::string& id) {
  for (const auto& request : snapshot()) {
    if (request->id() == id) request->stop();
  }
}

std::vector<std::shared_ptr<LiveRequest>> LiveRequests::snapshot() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<LiveRequest>> requests;
  requests.reserve(requests_.size());
  for (const auto& [key, request] : requests_) requests.push_back(request);
  return requests;
}

void LiveRequests::monitor() {
  std::unique_lock lock(mutex_);
  while (!closing_) {
    changed_.wait(lock, [this] { return closing_ || !requests_.empty(); });
    lock.unlock();
    for (const auto& request : snapshot()) request->look_after();
    lock.lock();
    changed_.wait_for(lock, check_period_, [this] { return closing_; });
  }
}

}  // namespace inflight::backend
