#include <gtest/gtest.h>

#include <random>

#include "tests/batcher/executor_fixture.h"

namespace inflight {
namespace {

using testing::Answer;
using testing::ask;
using testing::Fault;
using testing::make_request;

const std::vector<TokenId> kPrompt = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};

class ExecutorLifeTest : public testing::ExecutorTest {};

TEST_P(ExecutorLifeTest, AnswersAreTheSameOnEveryLayout) {
  const auto executor = make(config());
  const std::vector<TokenId> tokens = ask(*executor, make_request(kPrompt, 20))->tokens();
  ExecutorConfig alone;
  alone.num_threads = 1;
  const Executor reference(folder_.path().string(), alone);
  EXPECT_EQ(tokens, ask(const_cast<Executor&>(reference), make_request(kPrompt, 20))->tokens());
  EXPECT_EQ(tokens.size(), 20u);
}

TEST_P(ExecutorLifeTest, DestructionDeliversOneFinalResultToEachRequest) {
  std::vector<std::shared_ptr<Answer>> answers;
  Fault::instance().slow = true;  // so that none of them can be done before
  {
    const auto executor = make(config());
    for (int i = 0; i < 30; ++i) answers.push_back(ask(*executor, make_request(kPrompt, 900)));  // more than fit
  }
  for (const auto& answer : answers) {
    ASSERT_TRUE(answer->done());
    const Result result = answer->wait();
    EXPECT_TRUE(result.failed);
    EXPECT_EQ(static_cast<int>(result.error_code), static_cast<int>(ErrorCode::kUnavailable)) << result.error;
  }
}

TEST_P(ExecutorLifeTest, CallbacksMayUseTheExecutorEvenWhileItIsDestroyed) {
  std::atomic<int> refused{0}, finals{0};
  Fault::instance().slow = true;
  {
    const auto owner = make(config());
    Executor& executor = *owner;
    for (int i = 0; i < 8; ++i) {
      executor.submit(make_request(kPrompt, 900), [&](Result&& result) {
        executor.stats();
        executor.cancel(result.request_id + 1000);
        if (!result.request_final) return;
        ++finals;
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
        try {
          executor.submit(make_request(kPrompt), [](Result&&) {});
        } catch (const Error& e) {
          if (e.code() == ErrorCode::kUnavailable) ++refused;
        }
      });
    }
  }
  EXPECT_EQ(finals, 8);
  EXPECT_GT(refused, 0);
}

TEST_P(ExecutorLifeTest, ATimeoutBeyondTheClockIsNone) {
  const auto executor = make(config());
  for (const int64_t divisor : {1, 10, 1000}) {
    Request request = make_request(kPrompt, 5);
    request.timeout = std::chrono::microseconds(INT64_MAX / divisor);
    EXPECT_EQ(ask(*executor, request)->wait().finish_reason, FinishReason::kLength) << divisor;
  }
}

TEST_P(ExecutorLifeTest, AnIdleExecutorHoldsOnToNoRequest) {
  const auto executor = make(config());
  auto token = std::make_shared<int>(0);
  const std::weak_ptr<int> watched = token;
  Answer answer;
  executor->submit(make_request(kPrompt), [&answer, token](Result&& result) { answer.take(std::move(result)); });
  token.reset();
  answer.wait();
  for (int i = 0; i < 60'000 && !watched.expired(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_TRUE(watched.expired());
}

TEST_P(ExecutorLifeTest, AStormOfRequestsAndCancelsEndsEveryRequestOnce) {
  constexpr int kThreads = 4, kRequests = 40;
  ExecutorConfig config = this->config();
  config.capacity_policy = CapacityPolicy::kMaxUtilization;
  config.kv_cache.max_tokens = 160;  // a few sequences: there are pauses
  config.max_num_tokens = 24;
  const auto executor = make(config);
  const std::vector<TokenId> expected = ask(*executor, make_request(kPrompt, 20))->tokens();
  Fault::instance().armed = true;

  std::atomic<int> completed{0}, wrong{0};
  std::vector<std::thread> clients;
  for (int client = 0; client < kThreads; ++client) {
    clients.emplace_back([&, client] {
      std::mt19937 random(client);
      std::vector<std::pair<RequestId, std::shared_ptr<Answer>>> mine;
      for (int i = 0; i < kRequests; ++i) {
        Request request = make_request(kPrompt, 20);
        if (random() % 4 == 0) request.sampling.num_return_sequences = 2;
        if (random() % 16 == 0) request.input_ids.push_back(Fault::kPoison);
        if (random() % 8 == 0) request.timeout = std::chrono::microseconds(1 + random() % 2000);
        request.priority = static_cast<float>(random() % 3) / 2.0f;
        RequestId id = 0;
        mine.emplace_back(0, ask(*executor, request, &id));
        mine.back().first = id;
        if (random() % 3 == 0) executor->cancel(mine[random() % mine.size()].first);
        if (random() % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 500));
      }
      for (auto& [id, answer] : mine) {
        const Result result = answer->wait();
        if (result.failed || result.finish_reason != FinishReason::kLength) continue;
        ++completed;
        if (result.num_prompt_tokens == static_cast<int>(kPrompt.size()) &&
            answer->tokens(result.sequence_index) != expected)
          ++wrong;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_GT(completed, kThreads);
  EXPECT_EQ(wrong, 0);
  expect_nothing_left(*executor);
  Fault::instance().armed = false;
  EXPECT_EQ(ask(*executor, make_request(kPrompt, 20))->tokens(), expected);
}

INSTANTIATE_TEST_SUITE_P(Layouts, ExecutorLifeTest, testing::kLayouts, testing::layout_name);

// The way of an op of one's own: declared by name, bound from a plan, run by the engine.
TEST(CustomOp, APlanMayUseAnOpRegisteredBefore) {
  register_op("test.steer", [](OpBinding& op) -> std::function<void(const RunContext&)> {
    const int x = op.input("x");
    const TensorView direction = op.weight("direction");
    const auto strength = static_cast<float>(op.number("strength"));
    if (direction.elements() != op.slot(x).width)
      op.fail(ErrorCode::kInvalidArgument, "direction and x differ in width");
    const int out = op.output("out", op.slot(x).rows, op.slot(x).width);
    return [=](const RunContext& run) {
      const TensorView in = run.view(x), steered = run.view(out);
      for (int64_t i = 0; i < in.elements(); ++i)
        steered.as<float>()[i] = in.as<float>()[i] + strength * direction.as<float>()[i % in.shape[1]];
    };
  });

  // Steered hard enough along the embedding of a token by a head that is that very embedding, it is all that comes.
  constexpr TokenId kWanted = 17;
  const testing::TemporaryFolder folder;
  testing::json plan = testing::TinyNetwork().plan();
  testing::json& epilogue = plan["blocks"]["epilogue"];
  plan["weights"]["direction"] = plan["weights"]["norm"];
  plan["weights"]["direction"]["sources"][0]["tensor"] = "direction";
  epilogue[2]["inputs"]["x"] = "steered";
  const auto steer = [](double strength) {
    return testing::op("test.steer", {{"x", "rows"}}, {{"direction", "direction"}}, {{"out", "steered"}},
                       {{"strength", strength}});
  };
  auto tensors = testing::TinyNetwork().tensors();
  const size_t row = testing::TinyNetwork::kWidth * sizeof(float);
  tensors["direction"] = {"F32", {testing::TinyNetwork::kWidth}, tensors["head"].bytes.substr(kWanted * row, row)};
  testing::write_safetensors(folder.path() / "model.safetensors", tensors);

  const auto answer = [&](double strength) {
    testing::json document = plan;
    document["blocks"]["epilogue"].insert(document["blocks"]["epilogue"].begin() + 2, steer(strength));
    testing::write_file(folder.path() / "plan.json", document.dump());
    ExecutorConfig config;
    config.num_threads = 1;
    Executor executor(folder.path().string(), config);
    return ask(executor, make_request(kPrompt, 6))->tokens();
  };
  EXPECT_NE(answer(0), std::vector<TokenId>(6, kWanted));
  EXPECT_EQ(answer(1e4), std::vector<TokenId>(6, kWanted));

  epilogue.insert(epilogue.begin() + 2, steer(1));
  epilogue[2]["attributes"]["speed"] = 2;
  testing::write_file(folder.path() / "plan.json", plan.dump());
  testing::expect_error(ErrorCode::kInvalidArgument, {"epilogue", "'test.steer'", "attribute 'speed'"},
                        [&] { Executor(folder.path().string(), ExecutorConfig()); });
}

}  // namespace
}  // namespace inflight
