#include "backend/metric.h"

namespace inflight::backend {

namespace {

struct ParameterDeleter {
  void operator()(TRITONSERVER_Parameter* it) const { TRITONSERVER_ParameterDelete(it); }
};

/// Labels as the server takes them; it copies them.
class LabelList {
 public:
  explicit LabelList(const std::vector<Label>& labels) {
    for (const auto& [key, value] : labels) {
      owners_.emplace_back(TRITONSERVER_ParameterNew(key.c_str(), ParameterType::kString, value.c_str()));
      pointers_.push_back(owners_.back().get());
    }
  }
  const TRITONSERVER_Parameter** data() { return pointers_.data(); }
  uint64_t size() const { return pointers_.size(); }

 private:
  std::vector<std::unique_ptr<TRITONSERVER_Parameter, ParameterDeleter>> owners_;
  std::vector<const TRITONSERVER_Parameter*> pointers_;
};

struct MetricArgsDeleter {
  void operator()(TRITONSERVER_MetricArgs* it) const { log_if_error(TRITONSERVER_MetricArgsDelete(it)); }
};

}  // namespace

MetricFamily::MetricFamily(MetricKind kind, const std::string& name, const std::string& description) {
  TRITONSERVER_MetricFamily* family = nullptr;
  require_ok(TRITONSERVER_MetricFamilyNew(&family, kind, name.c_str(), description.c_str()));
  family_.reset(family);
}

TRITONSERVER_Metric* MetricFamily::add(const std::vector<Label>& labels) {
  LabelList list(labels);
  TRITONSERVER_Metric* metric = nullptr;
  require_ok(TRITONSERVER_MetricNew(&metric, family_.get(), list.data(), list.size()));
  return metrics_.emplace_back(metric).get();
}

TRITONSERVER_Metric* MetricFamily::add_histogram(const std::vector<Label>& labels, const std::vector<double>& buckets) {
  check(TRITONSERVER_MetricNewWithArgs != nullptr && TRITONSERVER_MetricArgsNew != nullptr, ErrorCode::kUnsupported,
        "this server has no histogram metrics");
  TRITONSERVER_MetricArgs* args = nullptr;
  require_ok(TRITONSERVER_MetricArgsNew(&args));
  const std::unique_ptr<TRITONSERVER_MetricArgs, MetricArgsDeleter> owner(args);
  require_ok(TRITONSERVER_MetricArgsSetHistogram(args, buckets.data(), buckets.size()));
  LabelList list(labels);
  TRITONSERVER_Metric* metric = nullptr;
  require_ok(TRITONSERVER_MetricNewWithArgs(&metric, family_.get(), list.data(), list.size(), args));
  return metrics_.emplace_back(metric).get();
}

}  // namespace inflight::backend
