#include "backend/request_releaser.h"

#include <memory>
#include <utility>

#include "backend/triton.h"

namespace inflight::backend {

namespace {

std::unique_ptr<RequestReleaser> the_releaser;
std::mutex backends_mutex;
int backends = 0;

}  // namespace

RequestReleaser::RequestReleaser() : thread_([this] { run(); }) {}

RequestReleaser::~RequestReleaser() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void RequestReleaser::release(TRITONBACKEND_Request* request, TRITONBACKEND_ResponseFactory* factory) {
  const std::lock_guard lock(mutex_);
  answered_.push_back({request, factory});
  changed_.notify_all();
}

void RequestReleaser::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return closing_ || !answered_.empty(); });
    if (answered_.empty()) return;
    const auto batch = std::exchange(answered_, {});
    lock.unlock();
    for (const Answered& it : batch) {
      if (it.factory != nullptr) log_if_error(TRITONBACKEND_ResponseFactoryDelete(it.factory));
      log_if_error(TRITONBACKEND_RequestRelease(it.request, kReleaseAll));
    }
    lock.lock();
  }
}

void RequestReleaser::start() {
  const std::lock_guard lock(backends_mutex);
  if (backends++ == 0) the_releaser = std::make_unique<RequestReleaser>();
}

void RequestReleaser::stop() {
  const std::lock_guard lock(backends_mutex);
  if (--backends == 0) the_releaser.reset();
}

RequestReleaser& RequestReleaser::get() { return *the_releaser; }

}  // namespace inflight::backend
