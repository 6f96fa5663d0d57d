#include "inflight_batcher/executor/prompt_tuning.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace inflight {

void check_prompt_tuning(const PromptTuning& tuning, size_t prompt_tokens, int hidden_size) {
  constexpr ErrorCode kCode = ErrorCode::kInvalidArgument;
  check(tuning.extra_ids.empty() || tuning.extra_ids.size() == prompt_tokens, kCode, "prompt_table_extra_ids has ",
        tuning.extra_ids.size(), " values, wanted as many as the prompt has tokens, ", prompt_tokens);
  if (!tuning.table) return;
  const PromptTable& table = *tuning.table;
  check(table.width == hidden_size, kCode, "prompt_embedding_table has rows of ", table.width,
        " values, wanted the network's hidden size ", hidden_size);
  const size_t wanted = static_cast<size_t>(table.rows) * static_cast<size_t>(table.width);
  check(table.rows >= 1 && table.values.size() >= wanted, kCode, "prompt_embedding_table has ", table.values.size(),
        " values, wanted at least ", wanted, " for ", table.rows, " rows");
  // They would spread to other sequences: kernels multiply masked values by zero.
  check(std::all_of(table.values.begin(), table.values.end(), [](float value) { return std::isfinite(value); }), kCode,
        "prompt_embedding_table holds a value that is not finite");
}

int virtual_tokens_of(const PromptTuning& tuning) { return tuning.table ? tuning.table->rows : 0; }

int shareable_tokens_of(const Request& request, int vocabulary) {
  const std::vector<uint64_t>& extra_ids = request.prompt_tuning.extra_ids;
  for (size_t i = 0; i < request.input_ids.size(); ++i)
    if (request.input_ids[i] >= vocabulary && (extra_ids.empty() || extra_ids[i] == 0)) return static_cast<int>(i);
  return std::numeric_limits<int>::max();
}

void add_virtual_tokens(Step& step, const SequenceState& sequence, const Scheduler::Item& item, size_t first_row) {
  const Request& request = sequence.request->request;
  if (!request.prompt_tuning.table) return;
  const PromptTable& table = *request.prompt_tuning.table;
  const int end = std::min(item.first + item.count, sequence.prompt_length());
  for (int i = item.first; i < end; ++i) {
    const int row = request.input_ids[i] - sequence.request->vocabulary_size;
    if (row < 0) continue;
    step.virtual_tokens.push_back(static_cast<int32_t>(first_row) + i - item.first);
    step.virtual_rows.push_back(table.values.data() + static_cast<size_t>(row) * table.width);
  }
}

}  // namespace inflight
