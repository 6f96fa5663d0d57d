#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace inflight {

/// A binary heap of distinct integers in [0, n), each with a key: the least key is on top, and any index can be removed
/// from the middle. Every operation is O(log n), none allocates.
template <typename Key>
class IndexHeap {
 public:
  explicit IndexHeap(int n) : keys_(n), places_(n, kOutside) { heap_.reserve(n); }

  int size() const { return static_cast<int>(heap_.size()); }
  bool empty() const { return heap_.empty(); }
  bool contains(int32_t index) const { return places_[index] != kOutside; }
  int32_t top() const { return heap_.front(); }
  const Key& key(int32_t index) const { return keys_[index]; }

  void push(int32_t index, Key key) {
    keys_[index] = std::move(key);
    places_[index] = size();
    heap_.push_back(index);
    rise(size() - 1);
  }

  void remove(int32_t index) {
    const int place = places_[index];
    move_to(place, heap_.back());
    heap_.pop_back();
    places_[index] = kOutside;
    if (place == size()) return;
    rise(place);
    sink(place);
  }

  /// The indices in no particular order.
  const std::vector<int32_t>& indices() const { return heap_; }

 private:
  static constexpr int32_t kOutside = -1;

  bool is_less(int place, int other) const { return keys_[heap_[place]] < keys_[heap_[other]]; }

  void move_to(int place, int32_t index) {
    heap_[place] = index;
    places_[index] = place;
  }

  void swap(int place, int other) {
    const int32_t index = heap_[place];
    move_to(place, heap_[other]);
    move_to(other, index);
  }

  void rise(int place) {
    for (; place > 0 && is_less(place, (place - 1) / 2); place = (place - 1) / 2) swap(place, (place - 1) / 2);
  }

  void sink(int place) {
    for (;;) {
      int least = place;
      for (int child = 2 * place + 1; child <= 2 * place + 2 && child < size(); ++child)
        if (is_less(child, least)) least = child;
      if (least == place) return;
      swap(place, least);
      place = least;
    }
  }

  std::vector<Key> keys_;        // [n]
  std::vector<int32_t> places_;  // [n] where in heap_, or kOutside
  std::vector<int32_t> heap_;
};

}  // namespace inflight
