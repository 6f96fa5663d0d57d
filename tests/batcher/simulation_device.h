#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "inflight_batcher/scheduler/scheduler.h"
#include "tests/batcher/simulation_workload.h"

namespace inflight {

/// What the engine gets to know of a step.
struct SimulatedStep {
  struct Work {
    Scheduler::Item item;
    std::vector<TokenId> tokens;  // those known when it was planned, and the drafts
    std::vector<int32_t> table;
    KvCacheManager::PolicyPtr policy;
  };

  std::vector<KvBlockCopy> copies;
  std::vector<Work> work;
  std::vector<std::vector<TokenId>> sampled;  // by item
  std::vector<uint64_t> digests;              // what the last token's place in the cache holds
  bool executed = false;
};

/// A model of the device's memory: runs steps in order, and checks that each sequence reads what it wrote.
class SimulatedDevice {
 public:
  explicit SimulatedDevice(const Setup& setup)
      : setup_(setup),
        memory_(setup.kv.num_blocks, std::vector<uint64_t>(setup.kv.block_size)),
        host_memory_(setup.kv.num_host_blocks, std::vector<uint64_t>(setup.kv.block_size)),
        history_(setup.scheduler.max_batch_size),
        sampled_last_(setup.scheduler.max_batch_size, -1) {}

  void execute(SimulatedStep& step) {
    step.executed = true;
    for (const KvBlockCopy& copy : step.copies) {
      const std::vector<uint64_t>& source = blocks(copy.from).at(copy.source);
      std::copy_n(source.begin(), copy.num_tokens, blocks(copy.to).at(copy.destination).begin());
    }
    for (auto& work : step.work) fill_pending(work);
    for (const auto& work : step.work) remember(work);
    for (const auto& work : step.work) check_reads(work);
    for (const auto& work : step.work) step.sampled.push_back(write(work));
    for (const auto& work : step.work) step.digests.push_back(cell(work, work.item.first + work.item.count - 1));
    for (const auto& work : step.work) check_reads(work);
  }

 private:
  using Work = SimulatedStep::Work;

  /// The device keeps each slot's tokens: it is told those before a step's own only of sequences new to the slot.
  void remember(const Work& work) {
    std::vector<TokenId>& history = history_[work.item.slot];
    const auto end = work.tokens.begin() + work.item.first;
    if (work.item.admitted || work.item.moved) history.assign(work.tokens.begin(), end);
    ASSERT_GE(history.size(), work.item.first);
    history.resize(work.item.first);
    ASSERT_TRUE(std::equal(work.tokens.begin(), end, history.begin()))
        << "slot " << work.item.slot << " remembers other tokens than those of sequence " << work.item.id;
    history.insert(history.end(), end, end + work.item.count);
  }

  /// The device knows what it sampled last for a slot.
  void fill_pending(Work& work) {
    const size_t wanted = work.item.first + work.item.count;
    if (work.tokens.size() < wanted) work.tokens.push_back(sampled_last_[work.item.slot]);
    ASSERT_GE(work.tokens.size(), wanted);
  }

  std::vector<std::vector<uint64_t>>& blocks(KvMemory memory) {
    return memory == KvMemory::kHost ? host_memory_ : memory_;
  }

  uint64_t& cell(const Work& work, int position) {
    return memory_[work.table[position / setup_.kv.block_size]][position % setup_.kv.block_size];
  }

  void check_reads(const Work& work) {
    uint64_t wanted = 0;
    for (int position = 0; position < work.item.first; ++position) {
      wanted = digest(wanted, work.tokens, position, work.item.id, work.policy.get());
      ASSERT_EQ(cell(work, position), wanted)
          << "sequence " << work.item.id << " reads foreign content at " << position;
    }
  }

  /// Computes an item's tokens from what memory has before them; returns what follows its last known token: the leading
  /// drafts that are right, and one token more.
  std::vector<TokenId> write(const Work& work) {
    const int known = work.item.first + work.item.count - static_cast<int>(work.item.drafts.size());
    std::vector<TokenId> sampled;
    uint64_t value = work.item.first > 0 ? cell(work, work.item.first - 1) : 0;
    for (int i = 0; i < work.item.count; ++i) {
      const int position = work.item.first + i;
      value = digest(value, work.tokens, position, work.item.id, work.policy.get());
      cell(work, position) = value;
      const bool confirmed = position < known || (sampled.size() == size_t(position - known) + 1 &&
                                                  sampled.back() == work.tokens[position]);
      if (work.item.samples && position + 1 >= known && confirmed)
        sampled.push_back(static_cast<TokenId>(value % setup_.vocabulary));
    }
    if (work.item.samples) sampled_last_[work.item.slot] = sampled.back();
    return sampled;
  }

  const Setup& setup_;
  std::vector<std::vector<uint64_t>> memory_;  // [block][position in block]
  std::vector<std::vector<uint64_t>> host_memory_;
  std::vector<std::vector<TokenId>> history_;  // [slot][position]
  std::vector<TokenId> sampled_last_;          // by slot
};

}  // namespace inflight
