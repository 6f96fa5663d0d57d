#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "backend/metric.h"
#include "backend/serving_metrics.h"
#include "inflight_batcher/api/executor.h"

namespace inflight::backend {

/// The custom metrics of one model, summed over its instances, and the statistics line of the verbose log. A thread
/// refreshes them periodically while something changes; it blocks while the model is idle.
class Metrics {
 public:
  /// The process's one object for a version of a model: while a model is reloaded, the old and the new one write to the
  /// same metrics. `period` counts for the first to ask.
  static std::shared_ptr<Metrics> shared(const std::string& model, uint64_t version, std::chrono::milliseconds period);

  Metrics(const std::string& model, uint64_t version, std::chrono::milliseconds period);
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  /// An executor to read; it must stay until it is removed.
  void add(const Executor& executor);
  void remove(const Executor& executor);

  /// A request has come: the numbers are about to change.
  void wake();

  /// Counts the lengths of a finished sequence.
  void observe_lengths(const Result& result);

  /// For the latencies of results; thread-safe.
  ServingMetrics& serving() { return serving_; }

 private:
  struct Source {
    const Executor* executor;
    int holders = 1;        // instances that added it: models may share an executor and these metrics
    ExecutorStats counted;  // what the counters already hold of it
  };

  void create_families(const std::string& model, uint64_t version);
  void create_histograms(const std::vector<Label>& labels);
  void report();
  bool refresh();
  void warn_of_delivery(double seconds);
  std::vector<Source>::iterator find(const Executor& executor);
  void count(Source& source, const ExecutorStats& now);

  const std::chrono::milliseconds period_;
  std::vector<MetricFamily> families_;
  std::vector<TRITONSERVER_Metric*> samples_;  // one for each row of the table; empty where the server has none
  TRITONSERVER_Metric* input_lengths_ = nullptr;
  TRITONSERVER_Metric* output_lengths_ = nullptr;
  ServingMetrics serving_;

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::vector<Source> sources_;
  std::vector<double> shown_;
  bool awake_ = false;
  bool warned_of_delivery_ = false;
  bool closing_ = false;
  std::thread reporter_;
};

}  // namespace inflight::backend
