#include "backend/serving_metrics.h"

#include <iterator>

namespace inflight::backend {

namespace {

using Stats = const ExecutorStats&;

constexpr auto kCounter = MetricKind::kCounter;
constexpr double kNanosecond = 1e-9;

// From a token of a small model on a GPU to one of a large model on a CPU.
const std::vector<double> kGapBuckets = {0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5};
const std::vector<double> kWaitBuckets = {0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60};

double hit_rate(Stats s) {
  const auto looked_up = static_cast<double>(s.tokens_reused + s.tokens_prefilled);
  return looked_up > 0 ? static_cast<double>(s.tokens_reused) / looked_up : 0.0;
}

double draft_acceptance_rate(Stats s) {
  return s.draft_tokens > 0 ? static_cast<double>(s.accepted_draft_tokens) / static_cast<double>(s.draft_tokens) : 0.0;
}

const ServingMetrics::Row kTable[] = {
    {"inflight_queue_depth", MetricKind::kGauge, "Sequences that wait for their first step or after a pause",
     [](Stats s) -> double { return s.waiting_requests; }},
    {"inflight_response_delivery_seconds", MetricKind::kGauge,
     "How long the server has been taking the response that it has been taking longest of those at hand",
     [](Stats s) -> double { return s.delivery_seconds; }},
    {"inflight_prefix_hit_rate", MetricKind::kGauge,
     "Share of the prompt tokens since the load that were found in the prefix cache", hit_rate},
    {"inflight_prompt_tokens_total", kCounter, "Prompt tokens computed, again after a pause",
     [](Stats s) -> double { return static_cast<double>(s.tokens_prefilled); }},
    {"inflight_prompt_tokens_reused_total", kCounter, "Prompt tokens found in the prefix cache",
     [](Stats s) -> double { return static_cast<double>(s.tokens_reused); }},
    {"inflight_generated_tokens_total", kCounter, "Tokens generated",
     [](Stats s) -> double { return static_cast<double>(s.tokens_generated); }},
    {"inflight_draft_acceptance_rate", MetricKind::kGauge,
     "Share of the verified draft tokens since the load that were accepted", draft_acceptance_rate},
    {"inflight_draft_tokens_total", kCounter, "Draft tokens verified",
     [](Stats s) -> double { return static_cast<double>(s.draft_tokens); }},
    {"inflight_draft_tokens_accepted_total", kCounter, "Draft tokens that became part of an answer",
     [](Stats s) -> double { return static_cast<double>(s.accepted_draft_tokens); }},
    {"inflight_preemptions_total", kCounter, "Pauses of running sequences for lack of KV blocks",
     [](Stats s) -> double { return static_cast<double>(s.preemptions); }},
    {"inflight_requests_completed_total", kCounter, "Rows of requests answered to the end",
     [](Stats s) -> double { return static_cast<double>(s.requests_completed); }},
    {"inflight_requests_cancelled_total", kCounter, "Rows of requests that their client ended",
     [](Stats s) -> double { return static_cast<double>(s.requests_cancelled); }},
    {"inflight_requests_failed_total", kCounter, "Sequences that ended with an error of the engine",
     [](Stats s) -> double { return static_cast<double>(s.requests_failed); }},
};

void observe(TRITONSERVER_Metric* histogram, double seconds) {
  if (histogram != nullptr) log_if_error(TRITONSERVER_MetricObserve(histogram, seconds));
}

}  // namespace

void ServingMetrics::create(const std::vector<Label>& labels) {
  std::vector<TRITONSERVER_Metric*> samples;
  for (const Row& row : kTable)
    samples.push_back(families_.emplace_back(row.kind, row.name, row.description).add(labels));
  samples_ = std::move(samples);
  const auto histogram = [&](const char* name, const char* text, const std::vector<double>& buckets) {
    return families_.emplace_back(MetricKind::kHistogram, name, text).add_histogram(labels, buckets);
  };
  queue_ = histogram("inflight_queue_time_seconds", "From the request's arrival to its first step", kWaitBuckets);
  first_token_ = histogram("inflight_time_to_first_token_seconds", "From the request's arrival to a sequence's token",
                           kWaitBuckets);
  token_gap_ = histogram("inflight_inter_token_latency_seconds", "From token to token of a sequence", kGapBuckets);
}

void ServingMetrics::show(const ExecutorStats& stats) {
  for (size_t i = 0; i < samples_.size(); ++i)
    if (kTable[i].kind == MetricKind::kGauge) log_if_error(TRITONSERVER_MetricSet(samples_[i], kTable[i].value(stats)));
}

void ServingMetrics::count(const ExecutorStats& before, const ExecutorStats& now) {
  for (size_t i = 0; i < samples_.size(); ++i) {
    if (kTable[i].kind != kCounter) continue;
    const double growth = kTable[i].value(now) - kTable[i].value(before);
    if (growth > 0) log_if_error(TRITONSERVER_MetricIncrement(samples_[i], growth));
  }
}

void ServingMetrics::observe_queue(double seconds) { observe(queue_, seconds); }
void ServingMetrics::observe_first_token(double seconds) { observe(first_token_, seconds); }
void ServingMetrics::observe_token_gaps(double seconds, int times) {
  for (int i = 0; i < times; ++i) observe(token_gap_, seconds);
}

void LatencyObserver::observe(size_t row, const Result& result, ServingMetrics& metrics) {
  const PerfMetrics& perf = result.perf;
  Seen& seen = sequences_[{row, result.sequence_index}];
  const int fresh = result.num_generated_tokens - seen.tokens;
  if (result.failed || fresh <= 0 || perf.first_token_time_ns == 0) return;
  int gaps = fresh;
  if (seen.tokens == 0) {
    const auto arrival = static_cast<double>(perf.arrival_time_ns);
    // The other sequences of a request start when the first has computed the prompt: no time in the queue.
    if (result.sequence_index == 0)
      metrics.observe_queue((static_cast<double>(perf.first_scheduled_time_ns) - arrival) * kNanosecond);
    metrics.observe_first_token((static_cast<double>(perf.first_token_time_ns) - arrival) * kNanosecond);
    seen.last_token_ns = perf.first_token_time_ns;
    --gaps;
  }
  const auto since = static_cast<double>(perf.last_token_time_ns - seen.last_token_ns);
  if (gaps > 0) metrics.observe_token_gaps(since * kNanosecond / gaps, gaps);
  seen = {result.num_generated_tokens, perf.last_token_time_ns};
}

}  // namespace inflight::backend
