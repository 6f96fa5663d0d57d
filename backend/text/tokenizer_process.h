#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>
#include <vector>

namespace inflight::backend {

/// How the tokenizer's process is started.
struct TokenizerCommand {
  std::string python;   // an interpreter with the tokenizers library; looked up in PATH without a slash
  std::string folder;   // of the tokenizer
  std::string package;  // what holds the inflight package, to go before PYTHONPATH; empty: python has it installed
};

/// The folder that holds the inflight package in which this library lies; empty where it lies elsewhere.
std::string package_of_this_library();

/// One process of inflight/tokenizer_worker.py, whose text describes the messages. It ends with this object, and with
/// the server even when that is killed: its socket closes then.
class TokenizerProcess {
 public:
  /// Starts it and waits until its tokenizer is loaded. Throws kInvalidArgument with what it says of the folder, and
  /// kUnavailable when it cannot be started or ends.
  explicit TokenizerProcess(const TokenizerCommand& command);
  ~TokenizerProcess();
  TokenizerProcess(const TokenizerProcess&) = delete;
  TokenizerProcess& operator=(const TokenizerProcess&) = delete;

  struct Answer {
    bool done = false;
    std::string body;  // not done: why
  };

  /// Sends a request and waits for its answer. Throws kUnavailable when the process has ended or does not answer.
  Answer ask(std::string_view request);

  pid_t id() const { return id_; }

 private:
  void start(const TokenizerCommand& command);
  void end() noexcept;
  Answer receive();
  void send_all(std::string_view bytes);
  std::string receive_all(size_t bytes);

  int socket_ = -1;
  pid_t id_ = -1;
};

}  // namespace inflight::backend
