#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/chrono.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>

#include "inflight_batcher/api/executor.h"
#include "inflight_batcher/python/handle.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace inflight {

namespace {

using FloatArray = nb::ndarray<nb::numpy, float>;

// The array owns its numbers: the result it came from may be gone.
FloatArray to_array(const std::vector<float>& values, size_t width) {
  auto* copy = new std::vector<float>(values);
  nb::capsule owner(copy, [](void* data) noexcept { delete static_cast<std::vector<float>*>(data); });
  return FloatArray(copy->data(), {width ? copy->size() / width : 0, width}, owner);
}

void bind_config(nb::module_& m) {
  nb::enum_<CapacityPolicy>(m, "CapacityPolicy")
      .value("GUARANTEED_NO_EVICT", CapacityPolicy::kGuaranteedNoEvict)
      .value("MAX_UTILIZATION", CapacityPolicy::kMaxUtilization);
  nb::class_<KvCacheConfig>(m, "KvCacheConfig")
      .def(nb::init<>())
      .def_rw("max_tokens", &KvCacheConfig::max_tokens, nb::arg().none())
      .def_rw("free_memory_fraction", &KvCacheConfig::free_memory_fraction)
      .def_rw("cpu_memory_bytes", &KvCacheConfig::cpu_memory_bytes)
      .def_rw("block_size", &KvCacheConfig::block_size, nb::arg().none())
      .def_rw("enable_block_reuse", &KvCacheConfig::enable_block_reuse)
      .def_rw("enable_partial_reuse", &KvCacheConfig::enable_partial_reuse)
      .def_rw("host_memory_bytes", &KvCacheConfig::host_memory_bytes)
      .def_rw("onboard_blocks", &KvCacheConfig::onboard_blocks)
      .def_rw("attention_windows", &KvCacheConfig::attention_windows)
      .def_rw("sink_tokens", &KvCacheConfig::sink_tokens);
  nb::class_<ExecutorConfig>(m, "ExecutorConfig")
      .def(nb::init<>())
      .def_rw("device", &ExecutorConfig::device)
      .def_rw("tensor_parallel", &ExecutorConfig::tensor_parallel)
      .def_rw("pipeline_parallel", &ExecutorConfig::pipeline_parallel)
      .def_rw("num_threads", &ExecutorConfig::num_threads)
      .def_rw("max_batch_size", &ExecutorConfig::max_batch_size)
      .def_rw("max_num_tokens", &ExecutorConfig::max_num_tokens)
      .def_rw("max_beam_width", &ExecutorConfig::max_beam_width)
      .def_rw("max_sequence_length", &ExecutorConfig::max_sequence_length, nb::arg().none())
      .def_rw("max_queue_size", &ExecutorConfig::max_queue_size)
      .def_rw("max_logits_bytes", &ExecutorConfig::max_logits_bytes)
      .def_rw("enable_chunked_context", &ExecutorConfig::enable_chunked_context)
      .def_rw("plan_ahead", &ExecutorConfig::plan_ahead, nb::arg().none())
      .def_rw("batch_invariant", &ExecutorConfig::batch_invariant)
      .def_rw("random_weights", &ExecutorConfig::random_weights)
      .def_rw("capacity_policy", &ExecutorConfig::capacity_policy)
      .def_rw("kv_cache", &ExecutorConfig::kv_cache);
}

void bind_retention(nb::module_& m) {
  nb::class_<Retention>(m, "Retention",
                        "How hard KV blocks are kept: priority 0 to 100, for how long (None: for ever).")
      .def(
          "__init__",
          [](Retention* place, int priority, std::optional<int64_t> duration_ms) {
            new (place) Retention{priority, duration_ms};
          },
          "priority"_a = Retention::kDefaultPriority, "duration_ms"_a.none() = nb::none())
      .def_rw("priority", &Retention::priority)
      .def_rw("duration_ms", &Retention::duration_ms, nb::arg().none());
  nb::class_<RetentionRange>(m, "RetentionRange",
                             "Retention of the prompt's tokens [begin, end); end None: to the end of the prompt.")
      .def(
          "__init__",
          [](RetentionRange* place, int begin, std::optional<int> end, int priority,
             std::optional<int64_t> duration_ms) { new (place) RetentionRange{begin, end, {priority, duration_ms}}; },
          "begin"_a, "end"_a.none() = nb::none(), "priority"_a = Retention::kDefaultPriority,
          "duration_ms"_a.none() = nb::none())
      .def_rw("begin", &RetentionRange::begin)
      .def_rw("end", &RetentionRange::end, nb::arg().none())
      .def_rw("retention", &RetentionRange::retention);
}

void set_prompt_table(Request& request, const nb::ndarray<const float, nb::ndim<2>, nb::c_contig>& array) {
  auto table = std::make_shared<PromptTable>();
  table->rows = static_cast<int>(array.shape(0));
  table->width = static_cast<int>(array.shape(1));
  table->values.assign(array.data(), array.data() + array.size());
  request.prompt_tuning.table = std::move(table);
}

void bind_request(nb::module_& m) {
  nb::class_<SamplingConfig>(m, "SamplingConfig")
      .def(nb::init<>())
      .def_rw("beam_width", &SamplingConfig::beam_width)
      .def_rw("length_penalty", &SamplingConfig::length_penalty)
      .def_rw("early_stopping", &SamplingConfig::early_stopping)
      .def_rw("beam_search_diversity_rate", &SamplingConfig::beam_search_diversity_rate)
      .def_rw("num_return_sequences", &SamplingConfig::num_return_sequences)
      .def_rw("temperature", &SamplingConfig::temperature)
      .def_rw("top_k", &SamplingConfig::top_k)
      .def_rw("top_p", &SamplingConfig::top_p)
      .def_rw("top_p_decay", &SamplingConfig::top_p_decay)
      .def_rw("top_p_min", &SamplingConfig::top_p_min)
      .def_rw("top_p_reset_id", &SamplingConfig::top_p_reset_id)
      .def_rw("min_p", &SamplingConfig::min_p)
      .def_rw("seed", &SamplingConfig::seed)
      .def_rw("repetition_penalty", &SamplingConfig::repetition_penalty)
      .def_rw("presence_penalty", &SamplingConfig::presence_penalty)
      .def_rw("frequency_penalty", &SamplingConfig::frequency_penalty)
      .def_rw("prompt_ignore_length", &SamplingConfig::prompt_ignore_length)
      .def_rw("no_repeat_ngram_size", &SamplingConfig::no_repeat_ngram_size)
      .def_rw("min_tokens", &SamplingConfig::min_tokens);
  nb::class_<OutputConfig>(m, "OutputConfig")
      .def(nb::init<>())
      .def_rw("streaming", &OutputConfig::streaming)
      .def_rw("exclude_input", &OutputConfig::exclude_input)
      .def_rw("log_probs", &OutputConfig::log_probs)
      .def_rw("context_logits", &OutputConfig::context_logits)
      .def_rw("generation_logits", &OutputConfig::generation_logits)
      .def_rw("perf_metrics", &OutputConfig::perf_metrics)
      .def_rw("additional_outputs", &OutputConfig::additional_outputs)
      .def_rw("prefix_tokens", &OutputConfig::prefix_tokens);
  nb::class_<Request>(m, "Request")
      .def(nb::init<>())
      .def_rw("input_ids", &Request::input_ids)
      .def_rw("max_tokens", &Request::max_tokens)
      .def_rw("sampling", &Request::sampling)
      .def_rw("output", &Request::output)
      .def_rw("end_id", &Request::end_id, nb::arg().none())
      .def_rw("stop_words", &Request::stop_words)
      .def_rw("bad_words", &Request::bad_words)
      .def_rw("embedding_bias", &Request::embedding_bias)
      .def("set_prompt_embedding_table", &set_prompt_table, "table"_a)
      .def_prop_rw(
          "prompt_table_extra_ids", [](const Request& r) { return r.prompt_tuning.extra_ids; },
          [](Request& r, std::vector<uint64_t> ids) { r.prompt_tuning.extra_ids = std::move(ids); })
      .def_prop_rw(
          "retention_ranges", [](const Request& r) { return r.retention.ranges; },
          [](Request& r, std::vector<RetentionRange> ranges) { r.retention.ranges = std::move(ranges); })
      .def_prop_rw(
          "retention_decode", [](const Request& r) { return r.retention.decode; },
          [](Request& r, const Retention& retention) { r.retention.decode = retention; })
      .def_rw("priority", &Request::priority)
      .def_rw("draft_tokens", &Request::draft_tokens)
      .def_rw("draft_logits", &Request::draft_logits)
      .def_rw("draft_acceptance_threshold", &Request::draft_acceptance_threshold, nb::arg().none())
      .def_rw("stop_after_drafts", &Request::stop_after_drafts)
      .def_rw("continued_tokens", &Request::continued_tokens)
      .def_rw("timeout", &Request::timeout);
}

void bind_result(nb::module_& m) {
  nb::class_<PerfMetrics>(m, "PerfMetrics")
      .def_ro("kv_alloc_new_blocks", &PerfMetrics::kv_alloc_new_blocks)
      .def_ro("kv_alloc_total_blocks", &PerfMetrics::kv_alloc_total_blocks)
      .def_ro("kv_reused_blocks", &PerfMetrics::kv_reused_blocks)
      .def_ro("arrival_time_ns", &PerfMetrics::arrival_time_ns)
      .def_ro("first_scheduled_time_ns", &PerfMetrics::first_scheduled_time_ns)
      .def_ro("first_token_time_ns", &PerfMetrics::first_token_time_ns)
      .def_ro("last_token_time_ns", &PerfMetrics::last_token_time_ns)
      .def_ro("draft_tokens", &PerfMetrics::draft_tokens)
      .def_ro("accepted_draft_tokens", &PerfMetrics::accepted_draft_tokens);
  nb::class_<BeamResult>(m, "BeamResult")
      .def_ro("tokens", &BeamResult::tokens)
      .def_prop_ro("finish_reason", [](const BeamResult& b) { return name_of(b.finish_reason); })
      .def_ro("num_generated_tokens", &BeamResult::num_generated_tokens)
      .def_ro("log_probs", &BeamResult::log_probs)
      .def_ro("cum_log_prob", &BeamResult::cum_log_prob)
      .def_ro("score", &BeamResult::score)
      .def("generation_logits",
           [](const BeamResult& b, size_t vocabulary) { return to_array(b.generation_logits, vocabulary); });
  nb::class_<Result>(m, "Result")
      .def_ro("request_id", &Result::request_id)
      .def_ro("sequence_index", &Result::sequence_index)
      .def_ro("sequence_final", &Result::sequence_final)
      .def_ro("request_final", &Result::request_final)
      .def_prop_ro("finish_reason", [](const Result& r) { return name_of(r.finish_reason); })
      .def_ro("tokens", &Result::tokens)
      .def_ro("prefix_tokens", &Result::prefix_tokens)
      .def_ro("num_prompt_tokens", &Result::num_prompt_tokens)
      .def_ro("num_generated_tokens", &Result::num_generated_tokens)
      .def_ro("log_probs", &Result::log_probs)
      .def_ro("cum_log_prob", &Result::cum_log_prob)
      .def_ro("beams", &Result::beams)
      .def("context_logits", [](const Result& r, size_t vocabulary) { return to_array(r.context_logits, vocabulary); })
      .def("generation_logits",
           [](const Result& r, size_t vocabulary) { return to_array(r.generation_logits, vocabulary); })
      .def("additional_output",
           [](const Result& r, const std::string& name) {
             const MarkedOutput& output = r.additional_outputs.at(name);
             return to_array(output.values, output.width);
           })
      .def_prop_ro("additional_output_names",
                   [](const Result& r) {
                     std::vector<std::string> names;
                     for (const auto& [name, output] : r.additional_outputs) names.push_back(name);
                     return names;
                   })
      .def_ro("perf", &Result::perf)
      .def_ro("failed", &Result::failed)
      .def_ro("error", &Result::error)
      .def_prop_ro("error_code", [](const Result& r) { return static_cast<int>(r.error_code); });
}

// Closing waits for the response thread, which may itself be waiting for the interpreter lock: let go of it meanwhile.
class PyExecutor {
 public:
  PyExecutor(const std::string& engine_dir, const ExecutorConfig& config)
      : executor_(std::make_unique<Executor>(engine_dir, config)) {}
  ~PyExecutor() { close(); }

  void close() {
    nb::gil_scoped_release unlocked;
    executor_.reset();
  }

  Executor& get() const {
    check(executor_ != nullptr, ErrorCode::kUnavailable, "the executor is closed");
    return *executor_;
  }

 private:
  std::unique_ptr<Executor> executor_;
};

#define FIELD(name) dict[#name] = stats.name
nb::dict stats_dict(const ExecutorStats& stats) {
  nb::dict dict;
  FIELD(steps);
  FIELD(timestamp_us);
  FIELD(active_requests);
  FIELD(waiting_requests);
  FIELD(scheduled_requests);
  FIELD(context_requests);
  FIELD(generation_requests);
  FIELD(paused_requests);
  FIELD(context_tokens);
  FIELD(max_requests);
  FIELD(kv_blocks_max);
  FIELD(kv_blocks_used);
  FIELD(kv_blocks_free);
  FIELD(kv_tokens_per_block);
  FIELD(kv_blocks_reused);
  FIELD(kv_host_blocks_max);
  FIELD(kv_host_blocks_used);
  FIELD(kv_blocks_offloaded);
  FIELD(kv_blocks_onboarded);
  FIELD(requests_completed);
  FIELD(requests_cancelled);
  FIELD(requests_failed);
  FIELD(preemptions);
  FIELD(tokens_generated);
  FIELD(tokens_prefilled);
  FIELD(tokens_reused);
  FIELD(draft_tokens);
  FIELD(accepted_draft_tokens);
  FIELD(delivery_seconds);
  FIELD(memory_cpu_bytes);
  FIELD(memory_gpu_bytes);
  FIELD(memory_pinned_bytes);
  return dict;
}
#undef FIELD

void bind_executor(nb::module_& m) {
  nb::class_<ModelInfo>(m, "ModelInfo")
      .def_ro("family", &ModelInfo::family)
      .def_ro("vocabulary_size", &ModelInfo::vocabulary_size)
      .def_ro("max_sequence_length", &ModelInfo::max_sequence_length)
      .def_ro("device", &ModelInfo::device)
      .def_ro("tensor_parallel", &ModelInfo::tensor_parallel)
      .def_ro("pipeline_parallel", &ModelInfo::pipeline_parallel)
      .def_ro("weight_bytes", &ModelInfo::weight_bytes)
      .def_ro("kv_bytes_per_token", &ModelInfo::kv_bytes_per_token)
      .def_ro("load_report", &ModelInfo::load_report);
  nb::class_<ResultQueue>(m, "ResultQueue")
      .def("get", &ResultQueue::get, "timeout"_a.none() = nb::none(), nb::call_guard<nb::gil_scoped_release>(),
           "The next result, or None when `timeout` (seconds) passes first.")
      .def("get_nowait", &ResultQueue::get_nowait);
  nb::class_<PyExecutor>(m, "Executor")
      .def(
          "__init__",
          [](PyExecutor* place, const std::string& engine_dir, const ExecutorConfig& config) {
            nb::gil_scoped_release unlocked;
            new (place) PyExecutor(engine_dir, config);
          },
          "engine_dir"_a, "config"_a)
      .def("close", &PyExecutor::close)
      .def(
          "submit",
          [](const PyExecutor& executor, Request request, nb::object on_result) {
            return submit_to_queue(executor.get(), std::move(request), std::move(on_result));
          },
          "request"_a, "on_result"_a.none() = nb::none(),
          "Queues the request; returns (request id, ResultQueue). `on_result` is called, with no argument, on the "
          "response thread after each result.")
      .def(
          "cancel", [](const PyExecutor& executor, RequestId id) { executor.get().cancel(id); }, "request_id"_a)
      .def("stats", [](const PyExecutor& executor) { return stats_dict(executor.get().stats()); })
      .def_prop_ro("model", [](const PyExecutor& executor) { return executor.get().model(); });
}

}  // namespace

}  // namespace inflight

NB_MODULE(_executor, m) {
  using namespace inflight;
  m.doc() = "The executor of inflight_batcher/api, as the Python package's inflight.executor uses it.";
  // (code, text): inflight.executor turns the code into an exception class.
  static nb::exception<Error> error_type(m, "ExecutorError");
  nb::register_exception_translator(
      [](const std::exception_ptr& pointer, void* type) {
        try {
          std::rethrow_exception(pointer);
        } catch (const Error& e) {
          // A file's name may hold bytes that are no UTF-8.
          const auto text = nb::steal(PyUnicode_DecodeUTF8(e.what(), std::strlen(e.what()), "replace"));
          PyErr_SetObject(static_cast<PyObject*>(type), nb::make_tuple(static_cast<int>(e.code()), text).ptr());
        }
      },
      error_type.ptr());
  bind_config(m);
  bind_retention(m);
  bind_request(m);
  bind_result(m);
  bind_executor(m);
}
