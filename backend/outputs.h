#pragma once

#include <bitset>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/triton_abi.h"
#include "inflight_batcher/api/result.h"

namespace inflight::backend {

struct OutputField;

/// What a row of a request asked for by its inputs; an output appears only if it is on here and requested.
struct OutputSwitches {
  bool batch = false;      // more than one row
  bool sequences = false;  // num_return_sequences > 1
  bool log_probs = false;
  bool context_logits = false;
  bool generation_logits = false;
  bool perf_metrics = false;
  bool num_input_tokens = false;
  bool num_output_tokens = false;
};

/// An output that every response of a row carries where the result has it, with the dtype of the configuration.
struct SelectedOutput {
  const OutputField* field;
  DataType type;
};

/// How the results of one row become responses.
struct ResponseForm {
  int batch_index = 0;
  bool batched = true;  // shapes have a leading 1, the batch dimension
  bool streaming = false;
  bool includes_input = false;          // tokens start with the prompt
  std::vector<SelectedOutput> outputs;  // output_ids first: clients read it as number 0
};

/// A set of output names; names outside the contract are dropped.
class OutputSet {
 public:
  void add(std::string_view name);
  bool has(std::string_view name) const;

  /// The members that the switches turn on and the configuration declares, in the order of the table.
  std::vector<SelectedOutput> enabled(const OutputSwitches& switches,
                                      const std::map<std::string, DataType, std::less<>>& declared) const;

 private:
  std::bitset<64> members_;
};

/// Adds the selected outputs of `result` to a new response; `texts`: what a text model says in it, one a beam. Throws
/// what the server refuses.
void write_outputs(TRITONBACKEND_Response* response, const ResponseForm& form, const Result& result,
                   std::span<const std::string> texts);

/// Throws kInvalidArgument when an output of the contract has another dtype, or neither text_output nor both of
/// output_ids and sequence_length are declared.
void check_declared_outputs(const std::map<std::string, DataType, std::less<>>& outputs);

}  // namespace inflight::backend
