#include "backend/stats_table.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>

namespace inflight::backend {

namespace {

using Stats = const ExecutorStats&;

constexpr auto kGauge = MetricKind::kGauge;
constexpr char kRequests[] = "nv_trt_llm_request_metrics";
constexpr char kMemory[] = "nv_trt_llm_runtime_memory_metrics";
constexpr char kKvBlocks[] = "nv_trt_llm_kv_cache_block_metrics";
constexpr char kDisaggregated[] = "nv_trt_llm_disaggregated_serving_metrics";
constexpr char kBatcher[] = "nv_trt_llm_inflight_batcher_metrics";
constexpr char kGeneral[] = "nv_trt_llm_general_metrics";
constexpr char kTimestampKey[] = "Timestamp";

double used_fraction(Stats s) {
  return s.kv_blocks_max > 0 ? static_cast<double>(s.kv_blocks_used) / s.kv_blocks_max : 0.0;
}

const StatsRow kTable[] = {
    {kRequests, kGauge, "request_type", "active", "Active Request Count",
     [](Stats s) -> double { return s.active_requests; }},
    {kRequests, kGauge, "request_type", "max", "Max Request Count", [](Stats s) -> double { return s.max_requests; }},
    {kRequests, kGauge, "request_type", "scheduled", "Scheduled Requests",
     [](Stats s) -> double { return s.scheduled_requests; }},
    {kRequests, kGauge, "request_type", "context", "Context Requests",
     [](Stats s) -> double { return s.context_requests; }},
    {kRequests, kGauge, "request_type", "waiting", "Waiting Requests",
     [](Stats s) -> double { return std::max(0, s.active_requests - s.scheduled_requests); }},
    {kMemory, kGauge, "memory_type", "cpu", "Runtime CPU Memory Usage",
     [](Stats s) -> double { return s.memory_cpu_bytes; }},
    {kMemory, kGauge, "memory_type", "gpu", "Runtime GPU Memory Usage",
     [](Stats s) -> double { return s.memory_gpu_bytes; }},
    {kMemory, kGauge, "memory_type", "pinned", "Runtime Pinned Memory Usage",
     [](Stats s) -> double { return s.memory_pinned_bytes; }},
    {kKvBlocks, kGauge, "kv_cache_block_type", "max", "Max KV cache blocks",
     [](Stats s) -> double { return s.kv_blocks_max; }},
    {kKvBlocks, kGauge, "kv_cache_block_type", "free", "Free KV cache blocks",
     [](Stats s) -> double { return s.kv_blocks_free; }},
    {kKvBlocks, kGauge, "kv_cache_block_type", "used", "Used KV cache blocks",
     [](Stats s) -> double { return s.kv_blocks_used; }},
    {kKvBlocks, kGauge, "kv_cache_block_type", "tokens_per", "Tokens per KV cache block",
     [](Stats s) -> double { return s.kv_tokens_per_block; }},
    {kKvBlocks, kGauge, "kv_cache_block_type", "reused", "Reused KV cache blocks",
     [](Stats s) -> double { return s.kv_blocks_reused; }},
    {kKvBlocks, kGauge, "kv_cache_block_type", "fraction", "Fraction used KV cache blocks", used_fraction},
    // No disaggregated serving: nothing is ever transferred.
    {kDisaggregated, MetricKind::kCounter, "disaggregated_serving_type", "kv_cache_transfer_ms",
     "KV cache transfer time", [](Stats) { return 0.0; }},
    {kDisaggregated, MetricKind::kCounter, "disaggregated_serving_type", "request_count", "Request count",
     [](Stats) { return 0.0; }},
    {kBatcher, kGauge, "inflight_batcher_specific_metric", "total_context_tokens", "Total Context Tokens",
     [](Stats s) -> double { return s.context_tokens; }},
    {kBatcher, kGauge, "inflight_batcher_specific_metric", "generation_requests", "Generation Requests",
     [](Stats s) -> double { return s.generation_requests; }},
    {kBatcher, kGauge, "inflight_batcher_specific_metric", "micro_batch_id", "MicroBatch ID",
     [](Stats s) -> double { return s.micro_batch; }},
    {kBatcher, kGauge, "inflight_batcher_specific_metric", "paused_requests", "Paused Requests",
     [](Stats s) -> double { return s.paused_requests; }},
    {kGeneral, kGauge, "general_type", "timestamp", kTimestampKey,
     [](Stats s) -> double { return static_cast<double>(s.timestamp_us); }},
    {kGeneral, kGauge, "general_type", "iteration_counter", "Iteration Counter",
     [](Stats s) -> double { return static_cast<double>(s.steps); }},
};

/// The numbers of the last step mean nothing once everybody has left.
ExecutorStats without_idle_step(ExecutorStats stats) {
  if (stats.active_requests > 0) return stats;
  stats.scheduled_requests = stats.context_requests = stats.generation_requests = 0;
  stats.paused_requests = stats.context_tokens = 0;
  return stats;
}

std::string format_timestamp(int64_t microseconds) {
  const auto seconds = static_cast<std::time_t>(microseconds / 1'000'000);
  std::tm local{};
  localtime_r(&seconds, &local);
  char date[32];
  std::strftime(date, sizeof(date), "%m-%d-%Y %H:%M:%S", &local);
  char text[48];
  std::snprintf(text, sizeof(text), "%s.%06d", date, static_cast<int>(microseconds % 1'000'000));
  return text;
}

nlohmann::json json_number(double value) {
  if (value == std::floor(value)) return static_cast<int64_t>(value);
  return value;
}

void add(ExecutorStats& total, const ExecutorStats& part) {
  total.steps += part.steps;
  total.timestamp_us = std::max(total.timestamp_us, part.timestamp_us);
  total.active_requests += part.active_requests;
  total.waiting_requests += part.waiting_requests;
  total.max_requests += part.max_requests;
  total.scheduled_requests += part.scheduled_requests;
  total.context_requests += part.context_requests;
  total.generation_requests += part.generation_requests;
  total.paused_requests += part.paused_requests;
  total.context_tokens += part.context_tokens;
  total.micro_batch = part.micro_batch;
  total.kv_blocks_max += part.kv_blocks_max;
  total.kv_blocks_used += part.kv_blocks_used;
  total.kv_blocks_free += part.kv_blocks_free;
  total.kv_tokens_per_block = part.kv_tokens_per_block;
  total.kv_blocks_reused += part.kv_blocks_reused;
  total.tokens_prefilled += part.tokens_prefilled;
  total.tokens_reused += part.tokens_reused;
  total.draft_tokens += part.draft_tokens;
  total.accepted_draft_tokens += part.accepted_draft_tokens;
  total.delivery_seconds = std::max(total.delivery_seconds, part.delivery_seconds);
  total.memory_cpu_bytes += part.memory_cpu_bytes;
  total.memory_gpu_bytes += part.memory_gpu_bytes;
  total.memory_pinned_bytes += part.memory_pinned_bytes;
}

}  // namespace

std::span<const StatsRow> stats_table() { return kTable; }

ExecutorStats sum(const std::vector<ExecutorStats>& parts) {
  ExecutorStats total;
  for (const ExecutorStats& part : parts) add(total, without_idle_step(part));
  return total;
}

std::vector<double> stats_values(const ExecutorStats& stats) {
  std::vector<double> values;
  for (const StatsRow& row : kTable) values.push_back(row.value(stats));
  return values;
}

std::string stats_line(const ExecutorStats& stats) {
  nlohmann::json line;
  for (const StatsRow& row : kTable) line[row.json_key] = json_number(row.value(stats));
  line[kTimestampKey] = format_timestamp(stats.timestamp_us);
  return line.dump();
}

}  // namespace inflight::backend
