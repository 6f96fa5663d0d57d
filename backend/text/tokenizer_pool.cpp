#include "backend/text/tokenizer_pool.h"

#include <future>
#include <utility>

#include "backend/triton.h"

namespace inflight::backend {

TokenizerPool::TokenizerPool(TokenizerCommand command, int processes) : command_(std::move(command)) {
  auto first = std::make_unique<TokenizerProcess>(command_);
  threads_.emplace_back([this, process = std::move(first)]() mutable { serve(std::move(process)); });
  for (int i = 1; i < processes; ++i) threads_.emplace_back([this] { serve(nullptr); });
}

TokenizerPool::~TokenizerPool() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void TokenizerPool::ask(std::string request, Callback callback) {
  const std::lock_guard lock(mutex_);
  jobs_.push_back({std::move(request), std::move(callback)});
  changed_.notify_one();
}

std::string TokenizerPool::ask_and_wait(std::string request) {
  std::promise<std::string> promise;
  ask(std::move(request), [&](std::string&& answer, const Error* error) {
    error == nullptr ? promise.set_value(std::move(answer)) : promise.set_exception(std::make_exception_ptr(*error));
  });
  return promise.get_future().get();
}

void TokenizerPool::serve(Process process) {
  try {
    if (process == nullptr) process = std::make_unique<TokenizerProcess>(command_);
  } catch (const Error& error) {
    log(LogLevel::kWarn, error.what());  // the next request tries again
  }
  while (std::optional<Job> job = next()) {
    std::string text;
    std::optional<Error> failure;
    try {
      text = answer(process, job->request);
    } catch (...) {
      failure = current_exception_as_error();
    }
    job->callback(std::move(text), failure ? &*failure : nullptr);
  }
}

std::optional<TokenizerPool::Job> TokenizerPool::next() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return closing_ || !jobs_.empty(); });
  if (jobs_.empty()) return std::nullopt;
  Job job = std::move(jobs_.front());
  jobs_.pop_front();
  return job;
}

std::string TokenizerPool::answer(Process& process, const std::string& request) const {
  TokenizerProcess::Answer answer = ask_surely(process, request);
  check(answer.done, ErrorCode::kInternal, "the tokenizer failed: ", answer.body);
  return std::move(answer.body);
}

/// A second failure is the request's own: it may be what ends the process.
TokenizerProcess::Answer TokenizerPool::ask_surely(Process& process, const std::string& request) const {
  if (process != nullptr) {
    try {
      return process->ask(request);
    } catch (const Error& error) {
      log(LogLevel::kWarn, concat(error.what(), "; it is started again"));
      process.reset();
    }
  }
  process = std::make_unique<TokenizerProcess>(command_);
  try {
    return process->ask(request);
  } catch (...) {
    process.reset();
    throw;
  }
}

}  // namespace inflight::backend
