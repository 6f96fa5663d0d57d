#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

namespace inflight::backend {

class LiveRequest;

/// The requests of a model that have been accepted and not yet answered, over all its instances. One thread asks the
/// server which of them were cancelled; it blocks while there are none.
class LiveRequests {
 public:
  explicit LiveRequests(std::chrono::milliseconds check_period);
  ~LiveRequests();
  LiveRequests(const LiveRequests&) = delete;
  LiveRequests& operator=(const LiveRequests&) = delete;

  void add(std::shared_ptr<LiveRequest> request);
  void remove(const LiveRequest& request);

  /// Cancels every live request of that id; none is fine.
  void stop(const std::string& id);

 private:
  void monitor();
  std::vector<std::shared_ptr<LiveRequest>> snapshot() const;

  const std::chrono::milliseconds check_period_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::unordered_map<const LiveRequest*, std::shared_ptr<LiveRequest>> requests_;
  bool closing_ = false;
  std::thread monitor_;
};

}  // namespace inflight::backend
