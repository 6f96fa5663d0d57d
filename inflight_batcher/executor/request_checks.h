#pragma once

#include "inflight/ops/sampling.h"
#include "inflight_batcher/api/executor.h"
#include "inflight_batcher/engine/plan.h"
#include "inflight_batcher/executor/request_state.h"

namespace inflight {

/// Refuses a request that cannot be served, with both numbers in the text (kInvalidArgument, kUnsupported), and cuts
/// max_tokens to what the sequence limit leaves.
void check_request(Request& request, const ModelInfo& model, const Plan& plan, const ExecutorConfig& config);

/// The sampler's view of a request's parameters, without what changes from step to step. Applies the contract's
/// normalisation: neither top_k, top_p nor min_p given, or temperature 0, means greedy.
SamplingRow sampling_row(const RequestState& state, int sequence_index);

/// Finds the end ids in force and lays out the word lists for the sampler.
void resolve_words(RequestState& state, const Plan& plan);

/// Takes the next step of a request's top-p decay, once `token` has been generated.
void decay_top_p(SamplingRow& row, const SamplingConfig& config, TokenId token);

/// Whether the generated tokens end in one of the stop words.
bool ends_in_stop_word(const std::vector<std::vector<TokenId>>& stop_words, const std::vector<TokenId>& generated);

}  // namespace inflight
