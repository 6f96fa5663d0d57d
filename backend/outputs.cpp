#include "backend/outputs.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <span>

#include "backend/half.h"
#include "backend/triton.h"

namespace inflight::backend {

class OutputWriter;

struct OutputField {
  std::string_view name;
  DataType type;  // kInvalid: FP32 or FP16, as the configuration declares
  bool (*enabled)(const OutputSwitches&);
  void (*write)(OutputWriter&, const Result&);
};

/// One output of one response. Shapes are given without the batch dimension.
class OutputWriter {
 public:
  OutputWriter(TRITONBACKEND_Response* response, const ResponseForm& form, const SelectedOutput& output,
               std::span<const std::string> texts)
      : response_(response), form_(form), output_(output), texts_(texts) {}

  const ResponseForm& form() const { return form_; }

  template <typename T>
  void values(std::span<const T> data, std::initializer_list<int64_t> shape) {
    if (!data.empty()) std::memcpy(allocate(data.size_bytes(), shape), data.data(), data.size_bytes());
    if (data.empty()) allocate(0, shape);
  }

  template <typename T>
  void scalar(T value) {
    values(std::span<const T>(&value, 1), {1});
  }

  void text(const std::string& text) { write_texts({&text, 1}, form_.batched); }

  /// A text model's texts: [beams] without the batch dimension, as the postprocessing model gives them.
  void pieces() { write_texts(texts_, false); }

  /// FP32 values in the dtype that the configuration declares.
  void logits(std::span<const float> data, std::initializer_list<int64_t> shape) {
    if (output_.type == DataType::kFp32) return values(data, shape);
    auto* halves = static_cast<uint16_t*>(allocate(data.size() * sizeof(uint16_t), shape));
    std::transform(data.begin(), data.end(), halves, to_half);
  }

 private:
  void write_texts(std::span<const std::string> texts, bool batched) {
    size_t bytes = 0;
    for (const std::string& text : texts) bytes += sizeof(uint32_t) + text.size();
    auto* place = static_cast<char*>(allocate(bytes, {static_cast<int64_t>(texts.size())}, batched));
    for (const std::string& text : texts) {
      const auto length = static_cast<uint32_t>(text.size());
      std::memcpy(place, &length, sizeof(length));
      std::memcpy(place + sizeof(length), text.data(), text.size());
      place += sizeof(length) + text.size();
    }
  }

  void* allocate(size_t bytes, std::initializer_list<int64_t> shape) { return allocate(bytes, shape, form_.batched); }

  void* allocate(size_t bytes, std::initializer_list<int64_t> shape, bool batched) {
    std::vector<int64_t> dims(shape);
    if (batched) dims.insert(dims.begin(), 1);
    TRITONBACKEND_Output* output = nullptr;
    require_ok(TRITONBACKEND_ResponseOutput(response_, &output, output_.field->name.data(), output_.type, dims.data(),
                                            static_cast<uint32_t>(dims.size())));
    void* buffer = nullptr;
    MemoryType memory = MemoryType::kCpu;
    int64_t memory_id = 0;
    require_ok(TRITONBACKEND_OutputBuffer(output, &buffer, bytes, &memory, &memory_id));
    check(memory != MemoryType::kGpu, ErrorCode::kUnsupported, "output ", output_.field->name,
          " would go to device memory; wanted host memory");
    return buffer;
  }

  TRITONBACKEND_Response* response_;
  const ResponseForm& form_;
  const SelectedOutput& output_;
  std::span<const std::string> texts_;  // of a text model
};

namespace {

using Writer = OutputWriter&;
using Switches = const OutputSwitches&;

bool always(Switches) { return true; }
bool if_log_probs(Switches it) { return it.log_probs; }
bool if_perf_metrics(Switches it) { return it.perf_metrics; }

/// One value of each beam; without beams that of the result.
template <typename T, typename ValueOf>
void write_each(Writer writer, const Result& result, const ValueOf& value_of) {
  std::vector<T> values;
  for (const BeamResult& beam : result.beams) values.push_back(value_of(beam));
  if (result.beams.empty()) values.push_back(value_of(result));
  writer.values<T>(values, {static_cast<int64_t>(values.size())});
}

/// [beams, longest]: the lists of all beams, shorter ones padded with -1; without beams the one of the result.
template <typename T, typename ListOf>
void write_lists(Writer writer, const Result& result, const ListOf& list_of) {
  if (result.beams.empty()) return writer.values<T>(list_of(result), {1, static_cast<int64_t>(list_of(result).size())});
  size_t longest = 0;
  for (const BeamResult& beam : result.beams) longest = std::max(longest, list_of(beam).size());
  std::vector<T> padded(result.beams.size() * longest, T{-1});
  for (size_t i = 0; i < result.beams.size(); ++i)
    std::copy(list_of(result.beams[i]).begin(), list_of(result.beams[i]).end(), padded.begin() + i * longest);
  writer.values<T>(padded, {static_cast<int64_t>(result.beams.size()), static_cast<int64_t>(longest)});
}

int64_t generated_tokens(const OutputWriter& writer, const Result& result) {
  if (!result.beams.empty()) return result.beams[0].num_generated_tokens;
  const auto prompt = writer.form().includes_input ? result.num_prompt_tokens : 0;
  return static_cast<int64_t>(result.tokens.size()) - prompt;
}

void write_ids(Writer writer, const Result& result) {
  write_lists<int32_t>(writer, result, [](const auto& it) -> const auto& { return it.tokens; });
}

/// Beams are sent whole: nothing goes before them.
void write_prefix(Writer writer, const Result& result) {
  const auto beams = std::max<int64_t>(1, static_cast<int64_t>(result.beams.size()));
  writer.values<int32_t>(result.prefix_tokens, {beams, static_cast<int64_t>(result.prefix_tokens.size())});
}

void write_context_logits(Writer writer, const Result& result) {
  if (result.context_logits.empty()) return;
  const int64_t rows = result.num_prompt_tokens;
  writer.logits(result.context_logits, {rows, static_cast<int64_t>(result.context_logits.size()) / rows});
}

/// [beams, longest, vocabulary], or [longest, beams, vocabulary] in a stream; behind a shorter beam's end zeros.
void write_beam_logits(Writer writer, const Result& result) {
  int64_t longest = 0, vocabulary = 0;
  for (const BeamResult& beam : result.beams) {
    longest = std::max<int64_t>(longest, beam.num_generated_tokens);
    if (beam.num_generated_tokens > 0)
      vocabulary = static_cast<int64_t>(beam.generation_logits.size()) / beam.num_generated_tokens;
  }
  if (longest == 0 || vocabulary == 0) return;
  const auto beams = static_cast<int64_t>(result.beams.size());
  const bool streaming = writer.form().streaming;
  std::vector<float> padded(beams * longest * vocabulary);
  for (int64_t beam = 0; beam < beams; ++beam)
    for (int64_t token = 0; token < result.beams[beam].num_generated_tokens; ++token) {
      const int64_t place = streaming ? token * beams + beam : beam * longest + token;
      std::copy_n(result.beams[beam].generation_logits.begin() + token * vocabulary, vocabulary,
                  padded.begin() + place * vocabulary);
    }
  writer.logits(padded, {streaming ? longest : beams, streaming ? beams : longest, vocabulary});
}

void write_generation_logits(Writer writer, const Result& result) {
  if (!result.beams.empty()) return write_beam_logits(writer, result);
  const int64_t rows = generated_tokens(writer, result);
  if (result.generation_logits.empty() || rows <= 0) return;
  const int64_t vocabulary = static_cast<int64_t>(result.generation_logits.size()) / rows;
  if (writer.form().streaming) {
    writer.logits(result.generation_logits, {rows, 1, vocabulary});
  } else {
    writer.logits(result.generation_logits, {1, rows, vocabulary});
  }
}

/// Of the verified draft tokens; 0 without any, as the contract has it.
float acceptance_rate(const PerfMetrics& perf) {
  return perf.draft_tokens == 0 ? 0.0f : static_cast<float>(perf.accepted_draft_tokens) / perf.draft_tokens;
}

const OutputField kFields[] = {
    {"text_output", DataType::kBytes, always, [](Writer w, const Result&) { w.pieces(); }},
    {"output_ids", DataType::kInt32, always, write_ids},
    {"sequence_length", DataType::kInt32, always,
     [](Writer w, const Result& r) {
       write_each<int32_t>(w, r, [](const auto& it) { return static_cast<int32_t>(it.tokens.size()); });
     }},
    {"prefix_ids", DataType::kInt32, always, write_prefix},
    {"sequence_final", DataType::kBool, always, [](Writer w, const Result& r) { w.scalar(r.sequence_final); }},
    {"finish_reason", DataType::kBytes, always, [](Writer w, const Result& r) { w.text(name_of(r.finish_reason)); }},
    {"batch_index", DataType::kInt32, [](Switches s) { return s.batch; },
     [](Writer w, const Result&) { w.scalar(static_cast<int32_t>(w.form().batch_index)); }},
    {"sequence_index", DataType::kInt32, [](Switches s) { return s.sequences; },
     [](Writer w, const Result& r) { w.scalar(static_cast<int32_t>(r.sequence_index)); }},
    {"cum_log_probs", DataType::kFp32, if_log_probs,
     [](Writer w, const Result& r) { write_each<float>(w, r, [](const auto& it) { return it.cum_log_prob; }); }},
    {"output_log_probs", DataType::kFp32, if_log_probs,
     [](Writer w, const Result& r) {
       write_lists<float>(w, r, [](const auto& it) -> const auto& { return it.log_probs; });
     }},
    {"context_logits", DataType::kInvalid, [](Switches s) { return s.context_logits; }, write_context_logits},
    {"generation_logits", DataType::kInvalid, [](Switches s) { return s.generation_logits; }, write_generation_logits},
    {"num_input_tokens", DataType::kInt32, [](Switches s) { return s.num_input_tokens; },
     [](Writer w, const Result& r) { w.scalar(static_cast<int32_t>(r.num_prompt_tokens)); }},
    {"num_output_tokens", DataType::kInt32, [](Switches s) { return s.num_output_tokens; },
     [](Writer w, const Result& r) { w.scalar(static_cast<int32_t>(generated_tokens(w, r))); }},
    {"kv_cache_alloc_new_blocks", DataType::kInt32, if_perf_metrics,
     [](Writer w, const Result& r) { w.scalar(static_cast<int32_t>(r.perf.kv_alloc_new_blocks)); }},
    {"kv_cache_reused_blocks", DataType::kInt32, if_perf_metrics,
     [](Writer w, const Result& r) { w.scalar(static_cast<int32_t>(r.perf.kv_reused_blocks)); }},
    {"kv_cache_alloc_total_blocks", DataType::kInt32, if_perf_metrics,
     [](Writer w, const Result& r) { w.scalar(static_cast<int32_t>(r.perf.kv_alloc_total_blocks)); }},
    {"arrival_time_ns", DataType::kInt64, if_perf_metrics,
     [](Writer w, const Result& r) { w.scalar(r.perf.arrival_time_ns); }},
    {"first_scheduled_time_ns", DataType::kInt64, if_perf_metrics,
     [](Writer w, const Result& r) { w.scalar(r.perf.first_scheduled_time_ns); }},
    {"first_token_time_ns", DataType::kInt64, if_perf_metrics,
     [](Writer w, const Result& r) { w.scalar(r.perf.first_token_time_ns); }},
    {"last_token_time_ns", DataType::kInt64, if_perf_metrics,
     [](Writer w, const Result& r) { w.scalar(r.perf.last_token_time_ns); }},
    {"acceptance_rate", DataType::kFp32, if_perf_metrics,
     [](Writer w, const Result& r) { w.scalar(acceptance_rate(r.perf)); }},
    {"total_accepted_draft_tokens", DataType::kInt32, if_perf_metrics,
     [](Writer w, const Result& r) { w.scalar(static_cast<int32_t>(r.perf.accepted_draft_tokens)); }},
    {"total_draft_tokens", DataType::kInt32, if_perf_metrics,
     [](Writer w, const Result& r) { w.scalar(static_cast<int32_t>(r.perf.draft_tokens)); }},
};
static_assert(std::size(kFields) <= 64, "OutputSet holds a bit for each output");

size_t index_of(std::string_view name) {
  const auto* found =
      std::find_if(std::begin(kFields), std::end(kFields), [&](const OutputField& it) { return it.name == name; });
  return static_cast<size_t>(found - std::begin(kFields));
}

bool fits(DataType wanted, DataType found) {
  if (wanted != DataType::kInvalid) return wanted == found;
  return found == DataType::kFp32 || found == DataType::kFp16;
}

}  // namespace

void OutputSet::add(std::string_view name) {
  const size_t index = index_of(name);
  if (index < std::size(kFields)) members_.set(index);
}

bool OutputSet::has(std::string_view name) const {
  const size_t index = index_of(name);
  return index < std::size(kFields) && members_.test(index);
}

std::vector<SelectedOutput> OutputSet::enabled(const OutputSwitches& switches,
                                               const std::map<std::string, DataType, std::less<>>& declared) const {
  std::vector<SelectedOutput> outputs;
  for (size_t i = 0; i < std::size(kFields); ++i) {
    if (!members_.test(i) || !kFields[i].enabled(switches)) continue;
    const auto found = declared.find(kFields[i].name);
    if (found != declared.end()) outputs.push_back({&kFields[i], found->second});
  }
  return outputs;
}

void write_outputs(TRITONBACKEND_Response* response, const ResponseForm& form, const Result& result,
                   std::span<const std::string> texts) {
  for (const SelectedOutput& output : form.outputs) {
    OutputWriter writer(response, form, output, texts);
    output.field->write(writer, result);
  }
}

void check_declared_outputs(const std::map<std::string, DataType, std::less<>>& outputs) {
  for (const char* name : {"output_ids", "sequence_length"}) {
    check(outputs.contains(name) || outputs.contains("text_output"), ErrorCode::kInvalidArgument,
          "the model configuration does not declare the output ", name);
  }
  for (const auto& [name, type] : outputs) {
    const size_t index = index_of(name);
    if (index == std::size(kFields)) continue;
    const DataType wanted = kFields[index].type;
    check(fits(wanted, type), ErrorCode::kInvalidArgument, "output ", name, " of the model configuration is ",
          TRITONSERVER_DataTypeString(type), "; wanted ",
          wanted == DataType::kInvalid ? "FP32 or FP16" : TRITONSERVER_DataTypeString(wanted));
  }
}

}  // namespace inflight::backend
