#include "backend/text/tokenizer_pool.h"

#include <signal.h>

#include <filesystem>
#include <future>

#include "backend/text/tokenizer_messages.h"
#include "tests/batcher/tiny_engine.h"
#include "tests/triton/harness.h"

namespace inflight::backend {
namespace {

/// A process that sends requests back, refuses some, and ends on others.
constexpr const char* kWorker = R"(
import os, pathlib, socket, struct, sys
connection = socket.socket(fileno=0)
def send(message):
    connection.sendall(struct.pack("<i", len(message)) + message)
if sys.argv[1] == "nowhere":
    send(b"Eno tokenizer there")
    sys.exit()
stream = connection.makefile("rb")
send(b"K")
while len(head := stream.read(4)) == 4:
    message = stream.read(struct.unpack("<i", head)[0])
    if message == b"end":
        sys.exit()
    if message.startswith(b"once "):
        flag = pathlib.Path(message[5:].decode())
        if not flag.exists():
            flag.touch()
            sys.exit()
    send((b"E" if message == b"refuse" else b"K") + message)
)";

class TokenizerPoolTest : public ::testing::Test {
 protected:
  TokenizerPoolTest() {
    std::filesystem::create_directory(folder_.path() / "inflight");
    testing::write_file(folder_.path() / "inflight/__init__.py", "");  // or a real one on PYTHONPATH would win
    testing::write_file(folder_.path() / "inflight/tokenizer_worker.py", kWorker);
  }

  TokenizerCommand command(const std::string& folder = "here") const {
    return {"python3", folder, folder_.path().string()};
  }

  testing::TemporaryFolder folder_;
};

TEST_F(TokenizerPoolTest, AnswersInAnyNumber) {
  TokenizerPool pool(command(), 2);
  std::vector<std::promise<std::string>> answers(50);
  for (size_t i = 0; i < answers.size(); ++i) {
    pool.ask(std::string(1 + 5000 * i, 'a'),
             [&answers, i](std::string&& answer, const Error*) { answers[i].set_value(std::move(answer)); });
  }
  for (size_t i = 0; i < answers.size(); ++i) EXPECT_EQ(answers[i].get_future().get().size(), 1 + 5000 * i);
}

TEST_F(TokenizerPoolTest, ARefusalIsTheRequestsError) {
  TokenizerPool pool(command(), 1);
  expect_error(ErrorCode::kInternal, "the tokenizer failed: refuse", [&] { pool.ask_and_wait("refuse"); });
  EXPECT_EQ(pool.ask_and_wait("again"), "again");
}

TEST_F(TokenizerPoolTest, AProcessThatEndsIsReplacedAndItsRequestRepeated) {
  TokenizerPool pool(command(), 1);
  const std::string request = "once " + (folder_.path() / "flag").string();
  EXPECT_EQ(pool.ask_and_wait(request), request);
}

TEST_F(TokenizerPoolTest, ARequestThatEndsEveryProcessFails) {
  TokenizerPool pool(command(), 1);
  expect_error(ErrorCode::kUnavailable, "has ended; the server's log holds what it printed",
               [&] { pool.ask_and_wait("end"); });
  EXPECT_EQ(pool.ask_and_wait("next"), "next");
}

TEST_F(TokenizerPoolTest, WhatTheProcessSaysOfTheFolderIsTheError) {
  expect_error(ErrorCode::kInvalidArgument, "no tokenizer there", [&] { TokenizerPool(command("nowhere"), 1); });
}

TEST_F(TokenizerPoolTest, AnInterpreterThatIsMissing) {
  TokenizerCommand missing = command();
  missing.python = "/nowhere/python";
  expect_error(ErrorCode::kUnavailable, "cannot be started: /nowhere/python: No such file",
               [&] { TokenizerPool(missing, 1); });
}

TEST_F(TokenizerPoolTest, ProcessesEndWithThePool) {
  pid_t id = 0;
  {
    TokenizerProcess process(command());
    id = process.id();
    EXPECT_EQ(kill(id, 0), 0);
  }
  EXPECT_EQ(kill(id, 0), -1);
}

TEST(TokenizerMessages, ListsOfIds) {
  const std::string message = TokenizerRequest('x').ids(std::vector<TokenId>{1, 2}).ids({}).number(5).take().substr(1);
  TokenizerAnswer answer(message);
  EXPECT_EQ(answer.ids(), (std::vector<TokenId>{1, 2}));
  EXPECT_EQ(answer.ids(), std::vector<TokenId>{});
  expect_error(ErrorCode::kInternal, "the tokenizer's answer has 0 bytes for 5 tokens", [&] { answer.ids(); });
  expect_error(ErrorCode::kInternal, "ends 4 bytes too early", [&] { answer.ids(); });
}

}  // namespace
}  // namespace inflight::backend
