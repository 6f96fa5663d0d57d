#include "backend/model.h"

namespace inflight::backend {

Model::Model(TRITONBACKEND_Model* model)
    : config_(read_model_config(model)),
      parameters_(parse_parameters(config_)),
      texts_(config_.has_texts() ? std::make_unique<TextModel>(config_) : nullptr),
      metrics_(Metrics::shared(engine_name(), config_.version,
                               std::chrono::milliseconds(parameters_.stats_check_period_ms))),
      live_requests_(std::chrono::milliseconds(parameters_.cancellation_check_period_ms)) {
  defaults_.request.output.exclude_input = parameters_.exclude_input_in_output;
  if (texts_ != nullptr) defaults_.request.end_id = texts_->end_id();
}

}  // namespace inflight::backend
