#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "backend/metric.h"
#include "inflight_batcher/api/executor.h"

namespace inflight::backend {

/// The metrics of our own, under the prefix inflight_, of one version of a model: how long requests wait and answers
/// take, how deep the queue is, and counters whose rate is a throughput. Labels: model and version.
class ServingMetrics {
 public:
  /// A number of the executor's statistics on the page: gauges show it, counters grow by its growth.
  struct Row {
    const char* name;
    MetricKind kind;
    const char* description;
    double (*value)(const ExecutorStats&);
  };

  /// Empty: every call does nothing.
  ServingMetrics() = default;

  /// Throws kUnsupported on servers without histograms; gauges and counters stay then.
  void create(const std::vector<Label>& labels);

  /// The gauges: `stats` of all instances together.
  void show(const ExecutorStats& stats);

  /// The counters: what one instance has done since `before`.
  void count(const ExecutorStats& before, const ExecutorStats& now);

  /// Seconds; `times` equal observations.
  void observe_queue(double seconds);
  void observe_first_token(double seconds);
  void observe_token_gaps(double seconds, int times);

 private:
  std::vector<MetricFamily> families_;
  std::vector<TRITONSERVER_Metric*> samples_;  // one for each row of the table; empty where the server has none
  TRITONSERVER_Metric* queue_ = nullptr;
  TRITONSERVER_Metric* first_token_ = nullptr;
  TRITONSERVER_Metric* token_gap_ = nullptr;
};

/// Tells the latency histograms of one request's results as they come. A result of several tokens counts each of them
/// with their mean gap: the times between the tokens of an answer that is not streamed are not known.
class LatencyObserver {
 public:
  /// `row` of the request.
  void observe(size_t row, const Result& result, ServingMetrics& metrics);

 private:
  struct Seen {
    int tokens = 0;
    int64_t last_token_ns = 0;
  };
  std::map<std::pair<size_t, int>, Seen> sequences_;  // by row and sequence
};

}  // namespace inflight::backend
