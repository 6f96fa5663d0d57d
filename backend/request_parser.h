#pragma once

#include <vector>

#include "backend/model_config.h"
#include "backend/model_parameters.h"
#include "backend/outputs.h"
#include "backend/request_fields.h"

namespace inflight::backend {

/// One row of a request, ready for the executor.
struct ParsedRow {
  Request request;
  ResponseForm form;
  RowTexts texts;  // of a text model: what input_ids, bad_words, embedding_bias are made of; and its stop words
  DraftingConfig drafting = {};
};

struct ParsedRequest {
  bool stop = false;            // an order to end the live requests of the same id; `rows` is empty then
  std::vector<ParsedRow> rows;  // one for each row of the batch
};

/// Reads and checks all inputs, the requested outputs and the request's parameters. Throws kInvalidArgument and
/// kUnsupported, with the name of what is wrong, what was found and what was wanted. `defaults`: what rows start from.
ParsedRequest parse_request(TRITONBACKEND_Request* request, const ModelConfig& config,
                            const ModelParameters& parameters, const RowRequest& defaults = {});

}  // namespace inflight::backend
