#include "backend/shared_executors.h"

#include <algorithm>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

namespace inflight::backend {

namespace {

/// Which executors are equal.
struct ExecutorKey {
  std::string name;
  std::filesystem::path folder;
  std::optional<std::filesystem::file_time_type> written;  // of the plan
  ExecutorConfig config;

  bool operator==(const ExecutorKey&) const = default;
};

ExecutorKey make_key(const std::string& name, const std::string& engine_dir, const ExecutorConfig& config) {
  std::error_code failed;  // a folder that cannot be read is the loader's to report
  ExecutorKey key{name, std::filesystem::weakly_canonical(engine_dir, failed), std::nullopt, config};
  const auto written = std::filesystem::last_write_time(std::filesystem::path(engine_dir) / "plan.json", failed);
  if (!failed) key.written = written;
  return key;
}

}  // namespace

struct ExecutorLease::Entry {
  ExecutorKey key;
  std::vector<std::string> holders;    // in the order in which they came
  std::unique_ptr<Executor> executor;  // null while it loads

  bool fits(const ExecutorKey& wanted, const std::string& holder) const {
    return key == wanted && std::find(holders.begin(), holders.end(), holder) == holders.end();
  }
};

struct ExecutorLease::Registry {
  std::mutex mutex;  // guards all entries
  std::condition_variable changed;
  std::vector<std::shared_ptr<Entry>> entries;

  /// The entry and the model that loaded it; an empty name: it is new, and the caller has to load it.
  std::pair<std::shared_ptr<Entry>, std::string> join(const ExecutorKey& key, const std::string& holder) {
    std::unique_lock lock(mutex);
    for (;;) {
      const auto found = std::find_if(entries.begin(), entries.end(), [&](auto& it) { return it->fits(key, holder); });
      if (found == entries.end()) {
        entries.push_back(std::make_shared<Entry>(Entry{key, {holder}, nullptr}));
        return {entries.back(), {}};
      }
      if ((*found)->executor != nullptr) {
        (*found)->holders.push_back(holder);
        return {*found, (*found)->holders.front()};
      }
      changed.wait(lock);
    }
  }

  void complete(Entry& entry, std::unique_ptr<Executor> executor) {
    const std::lock_guard lock(mutex);
    entry.executor = std::move(executor);
    changed.notify_all();
  }

  /// Gives one holder's share back; returns the executor when nobody holds it any more.
  std::unique_ptr<Executor> leave(const std::shared_ptr<Entry>& entry, const std::string& holder) {
    const std::lock_guard lock(mutex);
    entry->holders.erase(std::find(entry->holders.begin(), entry->holders.end(), holder));
    if (!entry->holders.empty()) return nullptr;
    std::erase(entries, entry);
    changed.notify_all();
    return std::move(entry->executor);
  }
};

ExecutorLease::Registry& ExecutorLease::registry() {
  static Registry registry;
  return registry;
}

ExecutorLease::ExecutorLease(const std::string& holder, const std::string& name, const std::string& engine_dir,
                             const ExecutorConfig& config)
    : holder_(holder) {
  std::tie(entry_, lender_) = registry().join(make_key(name, engine_dir, config), holder);
  if (!lender_.empty()) return;
  try {
    registry().complete(*entry_, std::make_unique<Executor>(engine_dir, config));
  } catch (...) {
    registry().leave(entry_, holder);
    throw;
  }
}

// Ended outside the lock: it joins threads and gives memory back.
ExecutorLease::~ExecutorLease() { registry().leave(entry_, holder_).reset(); }

Executor& ExecutorLease::operator*() const { return *entry_->executor; }

}  // namespace inflight::backend
