#include "backend/model_instance.h"

#include "backend/engine_instances.h"
#include "backend/live_request.h"
#include "backend/request_releaser.h"
#include "backend/triton.h"

namespace inflight::backend {

ModelInstance::ModelInstance(Model& model, TRITONBACKEND_ModelInstance* handle) : model_(model), handle_(handle) {
  if (model.config().has_engine()) {
    load_engine();
  } else {
    log(LogLevel::kInfo, concat(model.config().name, " works with the engine of ", model.engine_name()));
  }
}

void ModelInstance::load_engine() {
  const std::string& name = model_.config().name;
  executor_.emplace(name, concat(model_.engine_name(), ":", model_.config().version), model_.parameters().engine_dir,
                    model_.parameters().executor);
  const ModelInfo& info = executor().model();
  log(LogLevel::kInfo, concat(name, ": ", info.family, " on ", info.device, ", tensor parallel ", info.tensor_parallel,
                              ", pipeline parallel ", info.pipeline_parallel, ", sequences up to ",
                              info.max_sequence_length, " tokens"));
  if (!executor_->lender().empty()) {
    log(LogLevel::kInfo, concat(name, " shares the executor of ", executor_->lender()));
  } else if (!info.load_report.empty()) {
    log(LogLevel::kInfo, info.load_report);
  }
  model_.metrics().add(executor());
  if (!model_.config().has_texts()) EngineInstances::get().add(*this);
}

ModelInstance::~ModelInstance() {
  EngineInstances::get().remove(*this);
  {
    std::unique_lock lock(mutex_);
    drained_.wait(lock, [this] { return outstanding_ == 0; });
  }
  if (executor_) model_.metrics().remove(executor());
}

void ModelInstance::execute(std::span<TRITONBACKEND_Request* const> requests) {
  for (TRITONBACKEND_Request* request : requests) start(request);
}

void ModelInstance::start(TRITONBACKEND_Request* request) {
  std::shared_ptr<LiveRequest> live;
  try {
    live = std::make_shared<LiveRequest>(*this, request);
  } catch (...) {
    // Without a response factory there is no way to answer.
    log_if_error(current_error());
    RequestReleaser::get().release(request, nullptr);
    return;
  }
  hold();
  try {
    model_.when_ready([live](const Error* error) { error == nullptr ? live->start() : live->refuse(*error); });
  } catch (...) {
    live->refuse(current_exception_as_error());
  }
}

void ModelInstance::hold() {
  const std::lock_guard lock(mutex_);
  ++outstanding_;
}

void ModelInstance::on_finished() {
  const std::lock_guard lock(mutex_);
  --outstanding_;
  drained_.notify_all();
}

int ModelInstance::outstanding() {
  const std::lock_guard lock(mutex_);
  return outstanding_;
}

}  // namespace inflight::backend
