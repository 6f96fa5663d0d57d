#include "backend/metrics.h"

#include <algorithm>
#include <map>

#include "backend/stats_table.h"

namespace inflight::backend {

namespace {

constexpr double kSlowDeliverySeconds = 10;
const std::vector<double> kLengthBuckets = {10, 50, 100, 500, 1000};

std::vector<Label> with_category(std::vector<Label> labels, const char* label, const char* category) {
  labels.emplace_back(label, category);
  return labels;
}

}  // namespace

std::shared_ptr<Metrics> Metrics::shared(const std::string& model, uint64_t version, std::chrono::milliseconds period) {
  static std::mutex mutex;
  static std::map<std::pair<std::string, uint64_t>, std::weak_ptr<Metrics>> known;
  const std::lock_guard lock(mutex);
  std::weak_ptr<Metrics>& entry = known[{model, version}];
  std::shared_ptr<Metrics> metrics = entry.lock();
  if (metrics == nullptr) entry = metrics = std::make_shared<Metrics>(model, version, period);
  return metrics;
}

Metrics::Metrics(const std::string& model, uint64_t version, std::chrono::milliseconds period) : period_(period) {
  try {
    create_families(model, version);
  } catch (const Error& error) {
    log(LogLevel::kInfo, concat(model, " has no custom metrics: ", error.what()));
  }
  reporter_ = std::thread([this] { report(); });
}

Metrics::~Metrics() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  reporter_.join();
}

void Metrics::create_families(const std::string& model, uint64_t version) {
  const std::vector<Label> labels = {{"model", model}, {"version", std::to_string(version)}};
  std::vector<TRITONSERVER_Metric*> samples;
  std::string family;
  for (const StatsRow& row : stats_table()) {
    if (family != row.family) families_.emplace_back(row.kind, row.family, "Statistics of the in-flight batch manager");
    family = row.family;
    samples.push_back(families_.back().add(with_category(labels, row.label, row.category)));
  }
  samples_ = std::move(samples);
  serving_.create(labels);
  create_histograms(labels);
}

void Metrics::create_histograms(const std::vector<Label>& labels) {
  const auto create = [&](const char* family, const char* text, const char* category) {
    MetricFamily& histogram = families_.emplace_back(MetricKind::kHistogram, family, text);
    return histogram.add_histogram(with_category(labels, "response_metric_type", category), kLengthBuckets);
  };
  output_lengths_ = create("nv_llm_output_token_len", "Generated tokens of a sequence", "total_output_tokens");
  input_lengths_ = create("nv_llm_input_token_len", "Prompt tokens of a sequence", "total_input_tokens");
}

void Metrics::add(const Executor& executor) {
  {
    const std::lock_guard lock(mutex_);
    const auto source = find(executor);
    source == sources_.end() ? sources_.push_back({.executor = &executor}) : void(++source->holders);
  }
  wake();
}

void Metrics::remove(const Executor& executor) {
  {
    const std::lock_guard lock(mutex_);
    const auto source = find(executor);
    if (source == sources_.end() || --source->holders > 0) return;
    count(*source, executor.stats());
    sources_.erase(source);
  }
  wake();
}

std::vector<Metrics::Source>::iterator Metrics::find(const Executor& executor) {
  return std::find_if(sources_.begin(), sources_.end(), [&](const Source& it) { return it.executor == &executor; });
}

void Metrics::wake() {
  const std::lock_guard lock(mutex_);
  awake_ = true;
  changed_.notify_all();
}

void Metrics::observe_lengths(const Result& result) {
  if (input_lengths_ == nullptr || output_lengths_ == nullptr) return;
  log_if_error(TRITONSERVER_MetricObserve(input_lengths_, result.num_prompt_tokens));
  log_if_error(TRITONSERVER_MetricObserve(output_lengths_, result.num_generated_tokens));
}

void Metrics::report() {
  std::unique_lock lock(mutex_);
  while (!closing_) {
    changed_.wait(lock, [this] { return closing_ || awake_; });
    awake_ = false;
    while (refresh() && !closing_) changed_.wait_for(lock, period_, [this] { return closing_; });
  }
}

void Metrics::count(Source& source, const ExecutorStats& now) {
  serving_.count(source.counted, now);
  source.counted = now;
}

/// Once while any hangs, for whoever wonders why a stream stands still.
void Metrics::warn_of_delivery(double seconds) {
  if (seconds > kSlowDeliverySeconds && !warned_of_delivery_)
    log(LogLevel::kError,
        concat("the server has been taking one response for ", static_cast<int>(seconds),
               " s; its request waits, the others go on. Most likely the process of a python model that asks this one "
               "hangs: reload that model for its new requests; those at hand, and this model's unloading, wait until "
               "the server is restarted"));
  warned_of_delivery_ = seconds > kSlowDeliverySeconds;
}

/// Shows the present numbers. False when nothing has changed and nobody is at work.
bool Metrics::refresh() {
  if (sources_.empty()) return false;
  std::vector<ExecutorStats> parts;
  for (Source& source : sources_) {
    parts.push_back(source.executor->stats());
    count(source, parts.back());
  }
  const ExecutorStats stats = sum(parts);
  serving_.show(stats);
  std::vector<double> values = stats_values(stats);
  const bool changed = values != shown_;
  for (size_t i = 0; changed && i < samples_.size(); ++i) {
    if (stats_table()[i].kind == MetricKind::kGauge) log_if_error(TRITONSERVER_MetricSet(samples_[i], values[i]));
  }
  if (changed && TRITONSERVER_LogIsEnabled(LogLevel::kVerbose)) log(LogLevel::kVerbose, stats_line(stats));
  shown_ = std::move(values);
  warn_of_delivery(stats.delivery_seconds);
  return changed || stats.active_requests > 0 || stats.delivery_seconds > 0;
}

}  // namespace inflight::backend
