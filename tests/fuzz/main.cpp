#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "inflight/error.h"
#include "tests/fuzz/targets.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
extern "C" void __sanitizer_set_death_callback(void (*callback)());
#endif

namespace inflight::fuzz {
namespace {

constexpr unsigned kCaseSeconds = 60;  // more is a hang

struct Options {
  long cases = 10'000;
  uint64_t seed = 1;
  long first = 0;
  std::string only;
};

// What runs now, for the word of a process that dies.
char now_running[256] = "nothing";

void tell_case() {
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, now_running, std::strlen(now_running));
}

void die(int signal) {
  tell_case();
  ::signal(signal, SIG_DFL);
  ::raise(signal);
}

void watch_for_the_end() {
  for (const int signal : {SIGALRM, SIGABRT}) ::signal(signal, die);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  __sanitizer_set_death_callback(tell_case);
#else
  for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) ::signal(signal, die);
#endif
}

uint64_t case_seed(uint64_t seed, const std::string& target, long index) {
  return std::hash<std::string>()(target) ^ (seed * 0x9e3779b97f4a7c15ULL + static_cast<uint64_t>(index));
}

/// Number of findings.
int run_target(const NamedTarget& named, const Options& options) {
  const std::unique_ptr<Target> target = named.make();
  const long cases = std::max(1L, static_cast<long>(static_cast<double>(options.cases) / named.cost));
  long refused = 0;
  int findings = 0;
  for (long i = options.first; i < options.first + cases && findings < 5; ++i) {
    std::snprintf(now_running, sizeof(now_running), "the case: --target %s --seed %llu --first %ld --cases 1\n",
                  named.name.c_str(), static_cast<unsigned long long>(options.seed), i);
    ::alarm(kCaseSeconds);
    try {
      Dice dice(case_seed(options.seed, named.name, i));
      target->run(dice);
    } catch (const Error&) {
      ++refused;
    } catch (const std::exception& e) {
      ++findings;
      std::printf("%s: an exception that is no Error: %s\n%s", named.name.c_str(), e.what(), now_running);
    }
  }
  target->finish();
  ::alarm(0);
  std::printf("%-16s %8ld cases, %8ld refused, %d findings\n", named.name.c_str(), cases, refused, findings);
  std::fflush(stdout);
  return findings;
}

Options read_options(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    if (name == "--cases") options.cases = std::atol(argv[i + 1]);
    if (name == "--seed") options.seed = std::strtoull(argv[i + 1], nullptr, 10);
    if (name == "--first") options.first = std::atol(argv[i + 1]);
    if (name == "--target") options.only = argv[i + 1];
  }
  return options;
}

int run_all(const Options& options) {
  watch_for_the_end();
  std::vector<NamedTarget> targets;
  for (auto* group : {request_targets, text_targets, file_targets, executor_targets})
    for (NamedTarget& target : group()) targets.push_back(std::move(target));
  int findings = 0;
  bool found = false;
  for (const NamedTarget& target : targets) {
    if (!options.only.empty() && options.only != target.name) continue;
    found = true;
    NamedTarget one = target;
    if (!options.only.empty()) one.cost = 1;
    findings += run_target(one, options);
  }
  if (!found) std::printf("no target %s\n", options.only.c_str());
  return findings == 0 && found ? 0 : 1;
}

}  // namespace
}  // namespace inflight::fuzz

/// --cases N (of each target; the slow ones get fewer), --seed S, --target NAME, --first I.
int main(int argc, char** argv) { return inflight::fuzz::run_all(inflight::fuzz::read_options(argc, argv)); }
