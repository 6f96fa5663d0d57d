#include "backend/model_instance.h"

#include "backend/live_request.h"
#include "backend/request_releaser.h"
#include "backend/triton.h"

namespace inflight::backend {

ModelInstance::ModelInstance(Model& model, TRITONBACKEND_ModelInstance* handle)
    : model_(model),
      handle_(handle),
      executor_(model.config().name, concat(model.engine_name(), ":", model.config().version),
                model.parameters().engine_dir, model.parameters().executor) {
  const ModelInfo& info = executor_->model();
  log(LogLevel::kInfo, concat(model.config().name, ": ", info.family, " on ", info.device, ", tensor parallel ",
                              info.tensor_parallel, ", pipeline parallel ", info.pipeline_parallel,
                              ", sequences up to ", info.max_sequence_length, " tokens"));
  if (!executor_.lender().empty()) {
    log(LogLevel::kInfo, concat(model.config().name, " shares the executor of ", executor_.lender()));
  } else if (!info.load_report.empty()) {
    log(LogLevel::kInfo, info.load_report);
  }
  model_.metrics().add(*executor_);
}

ModelInstance::~ModelInstance() {
  {
    std::unique_lock lock(mutex_);
    drained_.wait(lock, [this] { return outstanding_ == 0; });
  }
  model_.metrics().remove(*executor_);
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
  live->start();
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

}  // namespace inflight::backend
