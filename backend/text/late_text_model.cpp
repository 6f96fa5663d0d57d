#include "backend/text/late_text_model.h"

#include <optional>
#include <utility>

#include "backend/triton.h"

namespace inflight::backend {

LateTextModel::~LateTextModel() {
  if (thread_.joinable()) thread_.join();
}

TextModel* LateTextModel::get() {
  const std::lock_guard lock(mutex_);
  return made_.get();
}

void LateTextModel::when_made(Then then) {
  {
    const std::lock_guard lock(mutex_);
    if (made_ == nullptr) {
      const bool working = !waiting_.empty();
      waiting_.push_back(std::move(then));
      if (working) return;
      start();
      return;
    }
  }
  then(nullptr);
}

void LateTextModel::start() {
  if (thread_.joinable()) thread_.join();  // it has failed before, and needs no lock any more
  try {
    thread_ = std::thread([this] { work(); });
  } catch (...) {
    waiting_.clear();  // of the caller, whose request fails with this
    throw;
  }
}

void LateTextModel::work() {
  std::unique_ptr<TextModel> made;
  std::optional<Error> error;
  try {
    made = make_();
  } catch (...) {
    error = current_exception_as_error();
  }
  std::vector<Then> waiting;
  {
    const std::lock_guard lock(mutex_);
    made_ = std::move(made);
    waiting.swap(waiting_);
  }
  for (const Then& then : waiting) then(error ? &*error : nullptr);
}

}  // namespace inflight::backend
