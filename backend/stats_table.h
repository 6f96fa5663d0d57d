#pragma once

#include <span>
#include <string>
#include <vector>

#include "backend/triton_abi.h"
#include "inflight_batcher/api/executor.h"

namespace inflight::backend {

/// One number of the executor's statistics: its sample on /metrics and its key in the log line.
struct StatsRow {
  const char* family;
  MetricKind kind;
  const char* label;     // the category label
  const char* category;  // its value
  const char* json_key;
  double (*value)(const ExecutorStats&);
};

/// The families of the contract, in groups of equal family.
std::span<const StatsRow> stats_table();

/// What several instances of one model show together.
ExecutorStats sum(const std::vector<ExecutorStats>& parts);

/// The value of each row, in the table's order.
std::vector<double> stats_values(const ExecutorStats& stats);

/// One line of JSON with a key for each row. Whole numbers have no fraction; the timestamp is local time.
std::string stats_line(const ExecutorStats& stats);

}  // namespace inflight::backend
