#include "backend/text/tokenizer_process.h"

#include <dlfcn.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>

#include "inflight/error.h"

namespace inflight::backend {

namespace {

/// Longer than any prompt takes: a process that is silent for so long hangs.
constexpr int kPatienceMs = 60'000;

constexpr std::string_view kSearchPath = "PYTHONPATH=";

std::vector<std::string> environment_for(const std::string& package) {
  std::vector<std::string> variables;
  std::string search = concat(kSearchPath, package);
  for (char** it = environ; *it != nullptr; ++it) {
    const std::string_view variable = *it;
    if (package.empty() || !variable.starts_with(kSearchPath)) {
      variables.emplace_back(variable);
    } else if (variable.size() > kSearchPath.size()) {
      search += concat(":", variable.substr(kSearchPath.size()));
    }
  }
  if (!package.empty()) variables.push_back(std::move(search));
  return variables;
}

std::vector<char*> pointers_to(std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (std::string& text : texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

/// The attributes of a new process: no signal is blocked or ignored in it, whatever the spawning thread does.
class SpawnAttributes {
 public:
  SpawnAttributes() {
    posix_spawnattr_init(&attributes_);
    sigset_t none;
    sigset_t all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setsigmask(&attributes_, &none);
    posix_spawnattr_setsigdefault(&attributes_, &all);
    posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  }
  ~SpawnAttributes() { posix_spawnattr_destroy(&attributes_); }
  const posix_spawnattr_t* get() const { return &attributes_; }

 private:
  posix_spawnattr_t attributes_;
};

/// Standard input is the socket; what is printed goes where the server's errors go.
class SpawnActions {
 public:
  explicit SpawnActions(int socket) {
    posix_spawn_file_actions_init(&actions_);
    posix_spawn_file_actions_adddup2(&actions_, socket, STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions_, STDERR_FILENO, STDOUT_FILENO);
  }
  ~SpawnActions() { posix_spawn_file_actions_destroy(&actions_); }
  const posix_spawn_file_actions_t* get() const { return &actions_; }

 private:
  posix_spawn_file_actions_t actions_;
};

}  // namespace

std::string package_of_this_library() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&package_of_this_library), &info) == 0) return "";
  std::error_code failed;
  const auto library = std::filesystem::canonical(info.dli_fname, failed);  // <package>/backends/inflight/lib*.so
  const auto package = library.parent_path().parent_path().parent_path();
  const bool found = !failed && std::filesystem::is_regular_file(package / "tokenizer_worker.py", failed);
  return found ? package.parent_path().string() : "";
}

TokenizerProcess::TokenizerProcess(const TokenizerCommand& command) {
  try {
    start(command);
    const Answer ready = receive();
    check(ready.done, ErrorCode::kInvalidArgument, ready.body);
  } catch (...) {
    end();
    throw;
  }
}

TokenizerProcess::~TokenizerProcess() { end(); }

void TokenizerProcess::start(const TokenizerCommand& command) {
  int sockets[2];
  check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) == 0, ErrorCode::kUnavailable,
        "no socket for the tokenizer process: ", std::strerror(errno));
  socket_ = sockets[0];
  std::vector<std::string> arguments = {command.python, "-m", "inflight.tokenizer_worker", command.folder};
  std::vector<std::string> variables = environment_for(command.package);
  const int failure =
      posix_spawnp(&id_, command.python.c_str(), SpawnActions(sockets[1]).get(), SpawnAttributes().get(),
                   pointers_to(arguments).data(), pointers_to(variables).data());
  close(sockets[1]);
  if (failure != 0) id_ = -1;
  check(failure == 0, ErrorCode::kUnavailable, "the tokenizer process cannot be started: ", command.python, ": ",
        std::strerror(failure));
}

void TokenizerProcess::end() noexcept {
  if (id_ > 0) {
    kill(id_, SIGKILL);  // it keeps nothing that could be lost
    waitpid(id_, nullptr, 0);
  }
  if (socket_ >= 0) close(socket_);
  id_ = socket_ = -1;
}

TokenizerProcess::Answer TokenizerProcess::ask(std::string_view request) {
  const auto size = static_cast<int32_t>(request.size());
  std::string message(reinterpret_cast<const char*>(&size), sizeof(size));
  send_all(message.append(request));
  return receive();
}

TokenizerProcess::Answer TokenizerProcess::receive() {
  int32_t size = 0;
  std::memcpy(&size, receive_all(sizeof(size)).data(), sizeof(size));
  check(size >= 1, ErrorCode::kUnavailable, "the tokenizer process answered with ", size, " bytes; wanted 1 or more");
  std::string message = receive_all(static_cast<size_t>(size));
  const bool done = message.front() == 'K';
  return {done, message.erase(0, 1)};
}

void TokenizerProcess::send_all(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    check(sent > 0, ErrorCode::kUnavailable, "the tokenizer process (", id_, ") has ended: ", std::strerror(errno));
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
}

std::string TokenizerProcess::receive_all(size_t bytes) {
  std::string data(bytes, '\0');
  for (size_t have = 0; have < bytes;) {
    pollfd wait{socket_, POLLIN, 0};
    const int ready = poll(&wait, 1, kPatienceMs);
    check(ready != 0, ErrorCode::kUnavailable, "the tokenizer process (", id_, ") has been silent for ",
          kPatienceMs / 1000, " s");
    const ssize_t received = ready < 0 ? -1 : recv(socket_, data.data() + have, bytes - have, 0);
    if (received < 0 && errno == EINTR) continue;
    check(received > 0, ErrorCode::kUnavailable, "the tokenizer process (", id_,
          ") has ended; the server's log holds what it printed");
    have += static_cast<size_t>(received);
  }
  return data;
}

}  // namespace inflight::backend
