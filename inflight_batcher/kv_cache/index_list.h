#pragma once

#include <cstdint>
#include <vector>

namespace inflight {

/// A doubly linked list of distinct integers in [0, n), all links in one array: every operation is O(1), none
/// allocates.
class IndexList {
 public:
  explicit IndexList(int n) : links_(n + 1), end_(n) { links_[end_] = {end_, end_}; }

  int size() const { return size_; }
  bool empty() const { return size_ == 0; }
  int32_t front() const { return links_[end_].next; }
  int32_t next(int32_t index) const { return links_[index].next; }  // end() behind the last
  int32_t end() const { return end_; }
  bool contains(int32_t index) const { return links_[index].next != kUnlinked; }

  void push_back(int32_t index) {
    const int32_t last = links_[end_].previous;
    links_[index] = {last, end_};
    links_[last].next = index;
    links_[end_].previous = index;
    ++size_;
  }

  void remove(int32_t index) {
    const Link link = links_[index];
    links_[link.previous].next = link.next;
    links_[link.next].previous = link.previous;
    links_[index] = {};
    --size_;
  }

 private:
  static constexpr int32_t kUnlinked = -1;
  struct Link {
    int32_t previous = kUnlinked;
    int32_t next = kUnlinked;
  };

  std::vector<Link> links_;  // the last one is the list's own: its next is the front
  int32_t end_;
  int size_ = 0;
};

}  // namespace inflight
