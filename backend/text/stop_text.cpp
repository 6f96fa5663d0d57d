#include "backend/text/stop_text.h"

#include <algorithm>
#include <utility>

namespace inflight::backend {

StopText::StopText(std::vector<std::string> words) : words_(std::move(words)) {
  std::erase_if(words_, [](const std::string& word) { return word.empty(); });
}

bool StopText::push(std::string_view text, bool may_end, std::string& out) {
  const size_t searched = held_.size();
  held_ += text;
  const size_t end = may_end ? earliest_end(searched) : std::string::npos;
  const bool ended = end != std::string::npos;
  const size_t sure = ended ? end : held_.size() - possible_beginning();
  out.append(held_, 0, sure);
  held_.erase(0, ended ? held_.size() : sure);
  return ended;
}

void StopText::finish(std::string& out) { out += std::exchange(held_, {}); }

/// Where the first stop word to end beyond `searched` ends; npos without any.
size_t StopText::earliest_end(size_t searched) const {
  size_t earliest = std::string::npos;
  for (const std::string& word : words_) {
    const size_t from = searched + 1 > word.size() ? searched + 1 - word.size() : 0;
    const size_t found = held_.find(word, from);
    if (found != std::string::npos) earliest = std::min(earliest, found + word.size());
  }
  return earliest;
}

/// Bytes at the end that may begin a stop word.
size_t StopText::possible_beginning() const {
  size_t longest = 0;
  const std::string_view held = held_;
  for (const std::string_view word : words_) {
    for (size_t size = std::min(word.size() - 1, held.size()); size > longest; --size) {
      if (held.ends_with(word.substr(0, size))) longest = size;
    }
  }
  return longest;
}

}  // namespace inflight::backend
