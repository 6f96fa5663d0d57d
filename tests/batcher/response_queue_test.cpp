#include "inflight_batcher/executor/response_queue.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <random>
#include <set>

namespace inflight {
namespace {

using namespace std::chrono_literals;

/// A request and what its callback sees: results by number, from 1, one at a time. It can hang at some of them.
class Client {
 public:
  explicit Client(std::set<int> hangs_at = {}) : hangs_at_(std::move(hangs_at)) {
    state_->callback = [this](Result&& result) { take(std::move(result)); };
  }

  ResponseQueue::Delivery next(bool is_final = false) {
    ResponseQueue::Delivery delivery{state_, {}};
    delivery.result.num_generated_tokens = ++made_;
    delivery.result.sequence_final = delivery.result.request_final = is_final;
    return delivery;
  }

  void go_on() {
    change([&] { hangs_at_.clear(); });
  }
  void throw_at(int number) { throws_at_ = number; }
  void work_for(std::function<std::chrono::microseconds()> time) { time_ = std::move(time); }

  /// Each fails the test when it does not come within a minute.
  void wait_until_hanging(int number) {
    wait([&] { return hanging_at_ == number; });
  }
  void wait_for(int results) {
    wait([&] { return static_cast<int>(seen_.size()) >= results; });
  }

  std::vector<int> seen() const {
    const std::lock_guard lock(mutex_);
    return seen_;
  }
  std::string failure() const {
    const std::lock_guard lock(mutex_);
    return failure_;
  }
  int made() const { return made_; }

 private:
  void take(Result&& result) {
    const int number = result.num_generated_tokens;
    EXPECT_FALSE(inside_.exchange(true)) << "two callbacks of one request at a time";
    if (time_) std::this_thread::sleep_for(time_());
    {
      std::unique_lock lock(mutex_);
      hanging_at_ = hangs_at_.contains(number) ? number : 0;
      changed_.notify_all();
      changed_.wait(lock, [&] { return !hangs_at_.contains(number); });
      hanging_at_ = 0;
    }
    inside_ = false;
    if (number == throws_at_) throw std::runtime_error("no more of it");
    change([&] {
      seen_.push_back(number);
      if (result.failed) failure_ = result.error;
    });
  }

  void change(const std::function<void()>& action) {
    const std::lock_guard lock(mutex_);
    action();
    changed_.notify_all();
  }

  void wait(const std::function<bool()>& condition) {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, 1min, condition));
  }

  const std::shared_ptr<RequestState> state_ = std::make_shared<RequestState>();
  std::function<std::chrono::microseconds()> time_;
  int made_ = 0;
  int throws_at_ = 0;
  std::atomic<bool> inside_ = false;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::set<int> hangs_at_;
  int hanging_at_ = 0;
  std::vector<int> seen_;
  std::string failure_;
};

std::vector<int> up_to(int last) {
  std::vector<int> numbers(static_cast<size_t>(last));
  for (int i = 0; i < last; ++i) numbers[static_cast<size_t>(i)] = i + 1;
  return numbers;
}

size_t threads_of_this_process() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return static_cast<size_t>(std::distance(begin(tasks), end(tasks)));
}

class ResponseQueueTest : public ::testing::Test {
 protected:
  /// One batch with the next result of each.
  void push(const std::vector<Client*>& clients) {
    std::vector<ResponseQueue::Delivery> batch;
    for (Client* client : clients) batch.push_back(client->next());
    queue_.push(batch);
  }

  void push_and_hang(Client& client) {
    push({&client});
    client.wait_until_hanging(client.made());
  }

  std::atomic<int> ended_ = 0;
  ResponseQueue queue_{[this](RequestId, const std::string&) { ++ended_; }, 5ms};
};

TEST_F(ResponseQueueTest, OthersGoOnWhileOneHangs) {
  Client stuck({1}), other;
  push({&stuck, &other, &stuck, &other});
  stuck.wait_until_hanging(1);
  push({&other, &stuck});
  other.wait_for(3);
  push({&stuck, &other});
  other.wait_for(4);
  EXPECT_EQ(other.seen(), up_to(4));
  EXPECT_TRUE(stuck.seen().empty());
  EXPECT_GT(queue_.delivery_seconds(), 0.005);
  stuck.go_on();
  stuck.wait_for(4);
  push({&stuck, &other});
  queue_.stop();
  EXPECT_EQ(stuck.seen(), up_to(5));
  EXPECT_EQ(other.seen(), up_to(5));
  EXPECT_EQ(queue_.delivery_seconds(), 0.0);
}

TEST_F(ResponseQueueTest, AThreadIsThereToTakeOverAlthoughNothingIsPushedAnyMore) {
  Client stuck({2}), other;
  push({&stuck, &other});
  other.wait_for(1);
  push({&stuck, &other});
  other.wait_for(2);
  EXPECT_EQ(stuck.seen(), up_to(1));
  stuck.go_on();
  queue_.stop();
}

TEST_F(ResponseQueueTest, TwoHangAndEachGoesOnAlone) {
  Client first({1}), second({2}), other;
  push_and_hang(first);
  push({&second, &second, &other, &first});
  other.wait_for(1);
  second.go_on();
  second.wait_for(2);
  push({&first, &second, &other});
  second.wait_for(3);
  EXPECT_TRUE(first.seen().empty());
  first.go_on();
  queue_.stop();
  EXPECT_EQ(first.seen(), up_to(3));
  EXPECT_EQ(second.seen(), up_to(3));
  EXPECT_EQ(other.seen(), up_to(2));
}

TEST_F(ResponseQueueTest, OneHangsAgainInWhatWasSetAside) {
  Client stuck({1, 2}), other;
  push({&stuck, &stuck, &stuck, &other});
  other.wait_for(1);
  Client again({1});
  push_and_hang(again);
  again.go_on();
  stuck.go_on();
  stuck.wait_for(3);
  queue_.stop();
  EXPECT_EQ(stuck.seen(), up_to(3));
}

TEST_F(ResponseQueueTest, OneMoreThanMayHangIsWaitedFor) {
  std::vector<std::unique_ptr<Client>> stuck;
  for (int i = 0; i <= ResponseQueue::kMaxHanging; ++i)
    push_and_hang(*stuck.emplace_back(std::make_unique<Client>(std::set{1})));
  Client other;
  push({&other, stuck[3].get()});
  std::this_thread::sleep_for(50ms);
  EXPECT_TRUE(other.seen().empty());
  stuck[3]->go_on();
  other.wait_for(1);
  for (const auto& client : stuck) client->go_on();
  queue_.stop();
  EXPECT_EQ(stuck[3]->seen(), up_to(2));
  for (const auto& client : stuck) EXPECT_EQ(client->seen(), up_to(client->made()));
}

TEST_F(ResponseQueueTest, ThreadsThatHungEndWhenTheirCallbackReturns) {
  Client other;
  push({&other});
  other.wait_for(1);
  const size_t before = threads_of_this_process();
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < ResponseQueue::kMaxHanging + 8; ++i) {
    Client& stuck = *clients.emplace_back(std::make_unique<Client>(std::set{1}));
    push({&stuck, &other});
    other.wait_for(other.made());
    stuck.go_on();
    stuck.wait_for(1);
  }
  const auto end = std::chrono::steady_clock::now() + 1min;
  while (threads_of_this_process() > before + 1) ASSERT_LT(std::chrono::steady_clock::now(), end);
  queue_.stop();
}

TEST_F(ResponseQueueTest, OneThatThrowsAfterItHungFailsOnce) {
  Client stuck({2}), other;
  stuck.throw_at(2);
  push({&stuck, &stuck, &stuck, &other});
  std::vector<ResponseQueue::Delivery> last;
  last.push_back(stuck.next(true));
  queue_.push(last);
  other.wait_for(1);
  stuck.go_on();
  queue_.stop();
  EXPECT_EQ(stuck.seen(), (std::vector<int>{1, 0})) << "nothing comes between what it threw at and the failure";
  EXPECT_EQ(stuck.failure(), "the callback for results failed: no more of it");
  EXPECT_EQ(ended_, 1);
}

TEST_F(ResponseQueueTest, StopDeliversToTheOthersAndWaitsForTheOneThatHangs) {
  Client stuck({1}), other;
  push({&stuck, &other, &stuck});
  std::atomic<bool> stopped = false;
  std::jthread stopping([&] {
    queue_.stop();
    stopped = true;
  });
  other.wait_for(1);
  EXPECT_FALSE(stopped);
  stuck.go_on();
  stopping.join();
  EXPECT_EQ(stuck.seen(), up_to(2));
}

TEST_F(ResponseQueueTest, NobodyWakesWhileNothingIsAtWork) {
  Client client;
  push({&client});
  client.wait_for(1);
  std::this_thread::sleep_for(50ms);  // ten times its patience: then the standby has seen that nothing is at work
  rusage before{}, after{};
  getrusage(RUSAGE_SELF, &before);
  std::this_thread::sleep_for(200ms);
  getrusage(RUSAGE_SELF, &after);
  EXPECT_LT(after.ru_nvcsw - before.ru_nvcsw, 10);
  queue_.stop();
}

TEST(ResponseQueueStressTest, ResultsOfARequestComeOneAtATimeAndInOrder) {
  std::atomic<unsigned> seed = 1;
  const auto sometimes_long = [&seed] {
    std::minstd_rand random(seed++ * 7919);
    random.discard(3);
    return std::chrono::microseconds(random() % 16 == 0 ? random() % 5000 : 0);
  };
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 40; ++i) clients.emplace_back(std::make_unique<Client>())->work_for(sometimes_long);
  ResponseQueue queue([](RequestId, const std::string&) {}, 1ms);
  std::minstd_rand random(17);
  std::vector<ResponseQueue::Delivery> batch;
  for (int i = 0; i < 3000; ++i) {
    batch.push_back(clients[random() % clients.size()]->next());
    if (random() % 20 == 0) queue.push(batch);
    if (random() % 200 == 0) std::this_thread::sleep_for(2ms);
  }
  queue.push(batch);
  queue.stop();
  for (const auto& client : clients) EXPECT_EQ(client->seen(), up_to(client->made()));
}

}  // namespace
}  // namespace inflight
