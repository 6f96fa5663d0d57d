#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/triton.h"

namespace inflight::backend {

/// A label of a metric: key and value.
using Label = std::pair<std::string, std::string>;

struct MetricDeleter {
  void operator()(TRITONSERVER_Metric* metric) const { log_if_error(TRITONSERVER_MetricDelete(metric)); }
};
using Metric = std::unique_ptr<TRITONSERVER_Metric, MetricDeleter>;

/// The metrics of one owner in a family of the server's /metrics page. Owners of equal labels share a metric there,
/// which goes with the last of them.
class MetricFamily {
 public:
  MetricFamily(MetricKind kind, const std::string& name, const std::string& description);

  TRITONSERVER_Metric* add(const std::vector<Label>& labels);

  /// Throws kUnsupported on servers without histograms.
  TRITONSERVER_Metric* add_histogram(const std::vector<Label>& labels, const std::vector<double>& buckets);

 private:
  std::shared_ptr<TRITONSERVER_MetricFamily> family_;
  std::vector<Metric> metrics_;  // after the family: deleted before it
};

}  // namespace inflight::backend
