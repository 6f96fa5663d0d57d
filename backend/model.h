#pragma once

#include <functional>

#include "backend/live_requests.h"
#include "backend/loaded_model.h"
#include "backend/metrics.h"
#include "backend/model_config.h"
#include "backend/model_parameters.h"
#include "backend/text/late_text_model.h"
#include "backend/text/text_model.h"

namespace inflight::backend {

/// A loaded version of a model: what its instances share.
class Model {
 public:
  explicit Model(TRITONBACKEND_Model* model);

  const ModelConfig& config() const { return config_; }

  /// Of a model with an engine, or what the defaults are.
  const ModelParameters& parameters() const { return parameters_; }

  /// The engine model: this one, or the one that a model with texts names. Both may share an executor, and have their
  /// metrics in common.
  const std::string& engine_name() const { return config_.has_texts() ? text_parameters_.engine_name : config_.name; }

  /// The engine model whose guesses that one verifies; empty: none.
  const std::string& draft_engine_name() const { return text_parameters_.draft_engine_name; }

  /// Calls `then` when requests can be answered: at once, but for a model with a tokenizer that starts with the first
  /// request; or with the error because of which they cannot.
  void when_ready(std::function<void(const Error*)> then);

  /// The tokenizer of a model with texts; null for one with token ids.
  TextModel* texts() { return texts_ == nullptr ? late_texts_.get() : texts_.get(); }

  LiveRequests& live_requests() { return live_requests_; }

  /// Of a model with an engine.
  Metrics& metrics() { return *metrics_; }

 private:
  std::unique_ptr<TextModel> start_late(TRITONBACKEND_Model* model) const;

  LoadedModel loaded_;
  ModelConfig config_;
  ModelParameters parameters_;
  TextParameters text_parameters_;
  std::unique_ptr<TextModel> texts_;
  std::shared_ptr<Metrics> metrics_;
  LateTextModel late_texts_;
  LiveRequests live_requests_;
};

}  // namespace inflight::backend
