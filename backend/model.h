#pragma once

#include "backend/live_requests.h"
#include "backend/metrics.h"
#include "backend/model_config.h"
#include "backend/model_parameters.h"

namespace inflight::backend {

/// A loaded version of a model: what its instances share.
class Model {
 public:
  explicit Model(TRITONBACKEND_Model* model);

  const ModelConfig& config() const { return config_; }
  const ModelParameters& parameters() const { return parameters_; }
  LiveRequests& live_requests() { return live_requests_; }
  Metrics& metrics() { return *metrics_; }

 private:
  ModelConfig config_;
  ModelParameters parameters_;
  std::shared_ptr<Metrics> metrics_;
  LiveRequests live_requests_;
};

}  // namespace inflight::backend
