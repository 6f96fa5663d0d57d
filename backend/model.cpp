#include "backend/model.h"

namespace inflight::backend {

Model::Model(TRITONBACKEND_Model* model)
    : config_(read_model_config(model)),
      parameters_(parse_parameters(config_)),
      metrics_(
          Metrics::shared(config_.name, config_.version, std::chrono::milliseconds(parameters_.stats_check_period_ms))),
      live_requests_(std::chrono::milliseconds(parameters_.cancellation_check_period_ms)) {}

}  // namespace inflight::backend
