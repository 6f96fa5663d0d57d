#include "backend/model.h"

#include <utility>

namespace inflight::backend {

namespace {

ModelParameters parameters_of(const ModelConfig& config) {
  return config.has_engine() ? parse_parameters(config) : ModelParameters{};
}

TextParameters text_parameters_of(const ModelConfig& config) {
  return config.has_texts() ? parse_text_parameters(config.parameters) : TextParameters{};
}

/// Its tokenizer can start with the model.
bool has_tokenizer(const ModelConfig& config, const TextParameters& parameters) {
  return config.has_texts() && (config.has_engine() || !parameters.tokenizer_dir.empty());
}

}  // namespace

Model::Model(TRITONBACKEND_Model* model)
    : config_(read_model_config(model)),
      parameters_(parameters_of(config_)),
      text_parameters_(text_parameters_of(config_)),
      texts_(has_tokenizer(config_, text_parameters_) ? std::make_unique<TextModel>(config_.name, text_parameters_)
                                                      : nullptr),
      metrics_(config_.has_engine() ? Metrics::shared(engine_name(), config_.version,
                                                      std::chrono::milliseconds(parameters_.stats_check_period_ms))
                                    : nullptr),
      late_texts_([this, model] { return start_late(model); }),
      live_requests_(std::chrono::milliseconds(parameters_.cancellation_check_period_ms)) {}

void Model::when_ready(std::function<void(const Error*)> then) {
  if (config_.has_texts() && texts_ == nullptr) return late_texts_.when_made(std::move(then));
  then(nullptr);
}

std::unique_ptr<TextModel> Model::start_late(TRITONBACKEND_Model* model) const {
  TextParameters parameters = text_parameters_;
  const ParameterTexts preprocessing = read_parameters_of("preprocessing", model);
  take_tokenizer(preprocessing, read_parameters_of("postprocessing", model), parameters);
  return std::make_unique<TextModel>(config_.name, parameters);
}

}  // namespace inflight::backend
