#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "backend/triton_abi.h"

namespace inflight::backend {

/// Gives answered requests and their factories back to the server, on a thread of its own: both keep their model alive,
/// so giving back the last one may finalize the model right there, which joins all of the model's threads. One for the
/// whole backend; it blocks while there is nothing to do.
class RequestReleaser {
 public:
  RequestReleaser();

  /// Gives back what is left.
  ~RequestReleaser();
  RequestReleaser(const RequestReleaser&) = delete;
  RequestReleaser& operator=(const RequestReleaser&) = delete;

  /// `factory` may be null.
  void release(TRITONBACKEND_Request* request, TRITONBACKEND_ResponseFactory* factory);

  /// Starts and ends the releaser. The server takes the library's two names for two backends: the last ends it.
  static void start();
  static void stop();
  static RequestReleaser& get();

 private:
  struct Answered {
    TRITONBACKEND_Request* request;
    TRITONBACKEND_ResponseFactory* factory;
  };
  void run();

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::vector<Answered> answered_;
  bool closing_ = false;
  std::thread thread_;
};

}  // namespace inflight::backend
