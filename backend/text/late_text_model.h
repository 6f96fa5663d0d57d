#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "backend/text/text_model.h"

namespace inflight::backend {

/// A text model that is made when it is first wanted, on a thread of its own: what it needs is not there when its owner
/// is loaded, and starting a tokenizer takes longer than a request may block the server.
class LateTextModel {
 public:
  using Make = std::function<std::unique_ptr<TextModel>()>;
  using Then = std::function<void(const Error*)>;

  explicit LateTextModel(Make make) : make_(std::move(make)) {}
  ~LateTextModel();
  LateTextModel(const LateTextModel&) = delete;
  LateTextModel& operator=(const LateTextModel&) = delete;

  /// Null until it is made.
  TextModel* get();

  /// Calls `then` at once where it is made; else with the error of making it, or with null, on that thread. After an
  /// error the next call tries again. Throws what starting a thread throws, with `then` never called.
  void when_made(Then then);

 private:
  void start();
  void work();

  const Make make_;
  std::mutex mutex_;  // guards what follows
  std::unique_ptr<TextModel> made_;
  std::vector<Then> waiting_;  // not empty: the thread is at work
  std::thread thread_;
};

}  // namespace inflight::backend
