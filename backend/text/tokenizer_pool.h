#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "backend/text/tokenizer_process.h"
#include "inflight/error.h"

namespace inflight::backend {

/// A few tokenizer processes and one queue of requests to them. A thread for each process takes the next request, waits
/// for its answer and hands it on; it blocks while there is nothing to do. A process that ends is replaced, and its
/// request asked once more: tokenizing changes nothing.
class TokenizerPool {
 public:
  /// Called on a thread of the pool, with the answer or with the error that took its place.
  using Callback = std::function<void(std::string&& answer, const Error* error)>;

  /// Returns when the first process is ready; the others start meanwhile. Throws what that one throws.
  TokenizerPool(TokenizerCommand command, int processes);

  /// Answers what is queued, then ends the processes.
  ~TokenizerPool();
  TokenizerPool(const TokenizerPool&) = delete;
  TokenizerPool& operator=(const TokenizerPool&) = delete;

  /// Queues a request.
  void ask(std::string request, Callback callback);

  /// The same, waiting for the answer. Throws the error. Not to be called on a thread of the pool.
  std::string ask_and_wait(std::string request);

 private:
  struct Job {
    std::string request;
    Callback callback;
  };
  using Process = std::unique_ptr<TokenizerProcess>;

  void serve(Process process);
  std::optional<Job> next();
  std::string answer(Process& process, const std::string& request) const;
  TokenizerProcess::Answer ask_surely(Process& process, const std::string& request) const;

  const TokenizerCommand command_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<Job> jobs_;
  bool closing_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace inflight::backend
