#pragma once

#include "backend/live_requests.h"
#include "backend/metrics.h"
#include "backend/model_config.h"
#include "backend/model_parameters.h"
#include "backend/text/text_model.h"

namespace inflight::backend {

/// A loaded version of a model: what its instances share.
class Model {
 public:
  explicit Model(TRITONBACKEND_Model* model);

  const ModelConfig& config() const { return config_; }
  const ModelParameters& parameters() const { return parameters_; }

  /// The engine model: this one, or the one that a model with texts names. Both may share an executor, and have their
  /// metrics in common.
  const std::string& engine_name() const { return texts_ == nullptr ? config_.name : texts_->engine_name(); }

  /// What rows of requests start from.
  const RowRequest& defaults() const { return defaults_; }

  /// The tokenizer of a model with texts; null for one with token ids.
  TextModel* texts() { return texts_.get(); }

  LiveRequests& live_requests() { return live_requests_; }
  Metrics& metrics() { return *metrics_; }

 private:
  ModelConfig config_;
  ModelParameters parameters_;
  std::unique_ptr<TextModel> texts_;
  RowRequest defaults_;
  std::shared_ptr<Metrics> metrics_;
  LiveRequests live_requests_;
};

}  // namespace inflight::backend
