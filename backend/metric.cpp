#include "backend/metric.h"

#include <map>
#include <mutex>

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

void delete_family(TRITONSERVER_MetricFamily* family) { log_if_error(TRITONSERVER_MetricFamilyDelete(family)); }

/// The process's one handle of a family. The server counts the owners of a metric by handle: with a handle for each
/// model, a model that goes would take the metrics of its successor along.
std::shared_ptr<TRITONSERVER_MetricFamily> shared_family(MetricKind kind, const std::string& name,
                                                         const std::string& description) {
  static std::mutex mutex;
  static std::map<std::string, std::weak_ptr<TRITONSERVER_MetricFamily>> families;
  const std::lock_guard lock(mutex);
  std::weak_ptr<TRITONSERVER_MetricFamily>& entry = families[name];
  if (auto known = entry.lock()) return known;
  TRITONSERVER_MetricFamily* family = nullptr;
  require_ok(TRITONSERVER_MetricFamilyNew(&family, kind, name.c_str(), description.c_str()));
  const std::shared_ptr<TRITONSERVER_MetricFamily> made(family, delete_family);
  entry = made;
  return made;
}

}  // namespace

MetricFamily::MetricFamily(MetricKind kind, const std::string& name, const std::string& description)
    : family_(shared_family(kind, name, description)) {}

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
