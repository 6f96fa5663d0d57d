#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <thread>

#include "inflight_batcher/parallel/communicator.h"

namespace inflight {

namespace {

constexpr int kSpinRounds = 2000;  // about the time between two operations of a busy step; then yield to the system
constexpr size_t kTensorsInFlight = 8;  // per sender and receiver, before a send waits
constexpr char kFailed[] = "another rank of the group failed";

// The barrier's word: ranks that have arrived, whether the group was aborted, and the rounds that are over.
constexpr uint64_t kAborted = uint64_t{1} << 31;
constexpr uint64_t kArrivedMask = kAborted - 1;
constexpr uint64_t kRound = uint64_t{1} << 32;

}  // namespace

std::pair<int, int> Topology::layers_of(int stage, int num_layers) const {
  const int base = num_layers / pipeline_parallel;
  const int extra = num_layers % pipeline_parallel;
  const int first = stage * base + std::min(stage, extra);
  return {first, first + base + (stage < extra ? 1 : 0)};
}

struct ThreadGroup::Shared {
  struct Mailbox {
    std::deque<std::vector<std::byte>> full;
    std::vector<std::vector<std::byte>> spare;  // buffers to use again, so that a steady state allocates nothing
  };

  explicit Shared(int size) : size(size), tensors(size) {}

  // Before an operation: either all ranks pass, or all throw because of an abort. Count and abort mark share one word,
  // so that the ranks cannot disagree about which came first.
  void enter() {
    uint64_t seen = state.load();
    do check(!(seen & kAborted), ErrorCode::kInternal, kFailed);
    while (!state.compare_exchange_weak(seen, after_arrival(seen)));
    if (!wait_for_next_round(seen, kAborted)) throw Error(ErrorCode::kInternal, kFailed);
  }

  // After an operation: an abort does not cut it short, since the other ranks may still be at this rank's tensor.
  void leave() {
    uint64_t seen = state.load();
    while (!state.compare_exchange_weak(seen, after_arrival(seen))) continue;
    wait_for_next_round(seen, 0);
  }

  // The last rank to arrive starts the next round.
  uint64_t after_arrival(uint64_t now) const {
    return (now & kArrivedMask) + 1 == static_cast<uint64_t>(size) ? (now & ~kArrivedMask) + kRound : now + 1;
  }

  // False when one of the bits `stop` is set before the round of `mine` is over.
  bool wait_for_next_round(uint64_t mine, uint64_t stop) {
    const auto over = [&] { return state.load() / kRound != mine / kRound; };
    const auto settled = [&] { return over() || (state.load() & stop) != 0; };
    if (over()) {
      std::lock_guard lock(mutex);
      changed.notify_all();
    }
    for (int i = 0; i < kSpinRounds && !settled(); ++i) continue;
    if (!settled()) {
      std::unique_lock lock(mutex);
      changed.wait(lock, settled);
    }
    return over();
  }

  bool aborted() const { return (state.load() & kAborted) != 0; }
  void check_alive() const { check(!aborted(), ErrorCode::kInternal, kFailed); }

  const int size;
  std::vector<TensorView> tensors;  // what each rank brings to the operation under way
  std::atomic<uint64_t> state{0};
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::pair<int, int>, Mailbox> mailboxes;
};

class ThreadGroup::Member : public Communicator {
 public:
  Member(Shared& shared, int rank) : shared_(shared), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return shared_.size; }

  // Each rank sums its own range of elements of all tensors and writes the sum to all of them: nobody else touches it.
  void all_reduce(TensorView tensor) override {
    if (size() == 1) return;
    check(tensor.dtype == DType::kFloat32, ErrorCode::kUnsupported, "all_reduce between threads takes float32, got ",
          name_of(tensor.dtype));
    shared_.tensors[rank_] = tensor;
    shared_.enter();
    std::string problem;
    const int64_t count = tensor.elements();
    for (const TensorView& other : shared_.tensors)
      if (other.elements() != count) problem = concat("all_reduce of ", describe(tensor), " with ", describe(other));
    if (problem.empty()) sum_my_range(count);
    shared_.leave();
    check(problem.empty(), ErrorCode::kInternal, problem);
  }

  void all_gather(TensorView in, TensorView out) override {
    shared_.tensors[rank_] = in;
    shared_.enter();
    const size_t out_row = row_bytes(out);
    size_t all = 0;
    for (const TensorView& part : shared_.tensors) all += row_bytes(part);
    if (all == out_row) gather_rows(out);
    shared_.leave();
    check(all == out_row, ErrorCode::kInternal, "all_gather of ", all, " bytes a row into ", out_row);
  }

  void send(TensorView tensor, int to) override {
    std::unique_lock lock(shared_.mutex);
    auto& box = shared_.mailboxes[{rank_, to}];
    shared_.changed.wait(lock, [&] { return box.full.size() < kTensorsInFlight || shared_.aborted(); });
    shared_.check_alive();
    std::vector<std::byte> buffer;
    if (!box.spare.empty()) {
      buffer = std::move(box.spare.back());
      box.spare.pop_back();
    }
    lock.unlock();
    buffer.assign(tensor.as<std::byte>(), tensor.as<std::byte>() + tensor.bytes());
    lock.lock();
    box.full.push_back(std::move(buffer));
    shared_.changed.notify_all();
  }

  void receive(TensorView tensor, int from) override {
    std::unique_lock lock(shared_.mutex);
    auto& box = shared_.mailboxes[{from, rank_}];
    shared_.changed.wait(lock, [&] { return !box.full.empty() || shared_.aborted(); });
    shared_.check_alive();
    std::vector<std::byte> buffer = std::move(box.full.front());
    box.full.pop_front();
    check(buffer.size() == tensor.bytes(), ErrorCode::kInternal, "received ", buffer.size(), " bytes for ",
          describe(tensor));
    lock.unlock();
    std::memcpy(tensor.data, buffer.data(), buffer.size());
    lock.lock();
    box.spare.push_back(std::move(buffer));
    shared_.changed.notify_all();
  }

  void abort() override {
    std::lock_guard lock(shared_.mutex);
    shared_.state.fetch_or(kAborted);
    shared_.changed.notify_all();
  }

 private:
  static size_t row_bytes(const TensorView& tensor) { return tensor.shape[tensor.rank - 1] * size_of(tensor.dtype); }

  void sum_my_range(int64_t count) {
    for (int64_t i = count * rank_ / size(); i < count * (rank_ + 1) / size(); ++i) {
      float sum = 0.0f;
      for (const TensorView& other : shared_.tensors) sum += other.as<float>()[i];
      for (const TensorView& other : shared_.tensors) other.as<float>()[i] = sum;
    }
  }

  void gather_rows(const TensorView& out) {
    size_t column = 0;
    for (const TensorView& part : shared_.tensors) {
      const size_t row = row_bytes(part);
      for (size_t r = 0; row != 0 && r < part.bytes() / row; ++r)
        std::memcpy(out.as<std::byte>() + r * row_bytes(out) + column, part.as<std::byte>() + r * row, row);
      column += row;
    }
  }

  Shared& shared_;
  int rank_;
};

ThreadGroup::ThreadGroup(int size) : shared_(std::make_unique<Shared>(size)) {
  for (int rank = 0; rank < size; ++rank) members_.push_back(std::make_unique<Member>(*shared_, rank));
}

ThreadGroup::~ThreadGroup() = default;

Communicator& ThreadGroup::at(int rank) { return *members_.at(rank); }

void ThreadGroup::abort() { members_[0]->abort(); }

void ThreadGroup::reset() {
  std::lock_guard lock(shared_->mutex);
  shared_->state.store(0);
  shared_->mailboxes.clear();
}

}  // namespace inflight
