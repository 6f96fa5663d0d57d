#pragma once

#include <memory>
#include <string>

#include "inflight_batcher/api/executor.h"

namespace inflight::backend {

/// A model instance's share of an executor. The last share of an executor ends it.
class ExecutorLease {
 public:
  /// An executor of `engine_dir` with this configuration: one that instances of other models hold already under the
  /// same `name`, so that the weights lie in memory once, else a new one. Instances of one model (`holder`) never
  /// share, so a reload starts afresh; nor do leases taken before and after the plan was rewritten. Waits while another
  /// model loads the same executor. Throws what loading throws.
  ExecutorLease(const std::string& holder, const std::string& name, const std::string& engine_dir,
                const ExecutorConfig& config);
  ~ExecutorLease();
  ExecutorLease(const ExecutorLease&) = delete;
  ExecutorLease& operator=(const ExecutorLease&) = delete;

  Executor& operator*() const;
  Executor* operator->() const { return &**this; }

  /// The model that loaded the executor, where it is not `holder` itself; else empty.
  const std::string& lender() const { return lender_; }

 private:
  struct Entry;
  struct Registry;
  static Registry& registry();

  std::string holder_;
  std::string lender_;
  std::shared_ptr<Entry> entry_;
};

}  // namespace inflight::backend
