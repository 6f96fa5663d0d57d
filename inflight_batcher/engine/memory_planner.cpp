#include <algorithm>
#include <numeric>

#include "inflight_batcher/engine/program.h"

namespace inflight {

namespace {

constexpr size_t kAlignment = 256;

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

bool alive_together(const Slot& a, const Slot& b) { return a.first_use <= b.last_use && b.first_use <= a.last_use; }

// The lowest gap among the already placed slots that live at the same time.
size_t lowest_gap(const Slot& slot, size_t bytes, const std::vector<Slot>& slots, const std::vector<size_t>& sizes,
                  const std::vector<int>& placed) {
  size_t offset = 0;
  for (int other : placed) {  // by ascending offset
    if (!alive_together(slot, slots[other])) continue;
    if (offset + bytes <= slots[other].offset) break;
    offset = std::max(offset, slots[other].offset + sizes[other]);
  }
  return offset;
}

}  // namespace

size_t plan_memory(std::vector<Slot>& slots, int64_t max_tokens, int64_t max_logits_rows) {
  std::vector<size_t> sizes;
  for (const Slot& slot : slots) {
    const int64_t rows = slot.rows == Rows::kTokens ? max_tokens : max_logits_rows;
    sizes.push_back(aligned(static_cast<size_t>(rows) * slot.width * size_of(slot.dtype)));
  }
  std::vector<int> order(slots.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return sizes[a] > sizes[b]; });

  size_t total = 0;
  std::vector<int> placed;
  for (int index : order) {
    Slot& slot = slots[index];
    slot.offset = lowest_gap(slot, sizes[index], slots, sizes, placed);
    total = std::max(total, slot.offset + sizes[index]);
    const auto place = std::upper_bound(placed.begin(), placed.end(), index,
                                        [&](int a, int b) { return slots[a].offset < slots[b].offset; });
    placed.insert(place, index);
  }
  return total;
}

}  // namespace inflight
