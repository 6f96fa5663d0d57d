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

constexpr int kSpinRounds = 2000;       // about the time between two operations of a busy step; then yield to the system
constexpr size_t kTensorsInFlight = 8;  // per sender and receiver, before a send waits

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

  // All ranks have arrived when the generation moves on.
  void barrier() {
    const uint64_t mine = generation.load();
    if (arrived.fetch_add(1) + 1 == size) {
      arrived.store(0);
      generation.fetch_add(1);
      std::lock_guard lock(mutex);
      changed.notify_all();
    } else {
      for (int i = 0; i < kSpinRounds && generation.load() == mine; ++i) check_alive();
      if (generation.load() == mine) {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return generation.load() != mine || aborted.load(); });
      }
    }
    check_alive();
  }

  void check_alive() const {
    check(!aborted.load(), ErrorCode::kInternal, "another rank of the group failed");
  }

  const int size;
  std::vector<TensorView> tensors;  // what each rank brings to the operation under way
  std::atomic<int> arrived{0};
  std::atomic<uint64_t> generation{0};
  std::atomic<bool> aborted{false};
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
    shared_.barrier();
    const int64_t count = tensor.elements();
    for (const TensorView& other : shared_.tensors)
      check(other.elements() == count, ErrorCode::kInternal, "all_reduce of ", describe(tensor), " with ", describe(other));
    for (int64_t i = count * rank_ / size(); i < count * (rank_ + 1) / size(); ++i) {
      float sum = 0.0f;
      for (const TensorView& other : shared_.tensors) sum += other.as<float>()[i];
      for (const TensorView& other : shared_.tensors) other.as<float>()[i] = sum;
    }
    shared_.barrier();
  }

  void all_gather(TensorView in, TensorView out) override {
    shared_.tensors[rank_] = in;
    shared_.barrier();
    const size_t element = size_of(in.dtype);
    const size_t out_row = out.shape[out.rank - 1] * element;
    size_t column = 0;
    for (const TensorView& part : shared_.tensors) {
      const size_t row = part.shape[part.rank - 1] * element;
      for (int64_t r = 0; r < (row ? static_cast<int64_t>(part.bytes() / row) : 0); ++r)
        std::memcpy(out.as<std::byte>() + r * out_row + column, part.as<std::byte>() + r * row, row);
      column += row;
    }
    check(column == out_row, ErrorCode::kInternal, "all_gather of ", column, " bytes a row into ", out_row);
    shared_.barrier();
  }

  void send(TensorView tensor, int to) override {
    std::unique_lock lock(shared_.mutex);
    auto& box = shared_.mailboxes[{rank_, to}];
    shared_.changed.wait(lock, [&] { return box.full.size() < kTensorsInFlight || shared_.aborted.load(); });
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
    shared_.changed.wait(lock, [&] { return !box.full.empty() || shared_.aborted.load(); });
    shared_.check_alive();
    std::vector<std::byte> buffer = std::move(box.full.front());
    box.full.pop_front();
    check(buffer.size() == tensor.bytes(), ErrorCode::kInternal, "received ", buffer.size(), " bytes for ", describe(tensor));
    lock.unlock();
    std::memcpy(tensor.data, buffer.data(), buffer.size());
    lock.lock();
    box.spare.push_back(std::move(buffer));
    shared_.changed.notify_all();
  }

  void abort() override {
    std::lock_guard lock(shared_.mutex);
    shared_.aborted.store(true);
    shared_.changed.notify_all();
  }

 private:
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
  shared_->arrived.store(0);
  shared_->mailboxes.clear();
  shared_->aborted.store(false);
}

}  // namespace inflight
