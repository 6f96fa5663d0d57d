#include <malloc.h>

#include "backend/model.h"
#include "backend/model_instance.h"
#include "backend/request_releaser.h"
#include "backend/triton.h"

#define INFLIGHT_EXPORT extern "C" __attribute__((visibility("default")))

namespace inflight::backend {

namespace {

/// The first interface version with everything that is called without a test for null.
constexpr uint32_t kWantedMajor = 1;
constexpr uint32_t kLeastMinor = 16;

void check_api_version() {
  uint32_t major = 0;
  uint32_t minor = 0;
  require_ok(TRITONBACKEND_ApiVersion(&major, &minor));
  check(major == kWantedMajor && minor >= kLeastMinor, ErrorCode::kUnsupported, "the server's backend interface is ",
        major, ".", minor, "; wanted ", kWantedMajor, ".", kLeastMinor, " or a later minor version");
}

Model* state_of(TRITONBACKEND_Model* model) {
  void* state = nullptr;
  require_ok(TRITONBACKEND_ModelState(model, &state));
  return static_cast<Model*>(state);
}

ModelInstance* state_of(TRITONBACKEND_ModelInstance* instance) {
  void* state = nullptr;
  require_ok(TRITONBACKEND_ModelInstanceState(instance, &state));
  return static_cast<ModelInstance*>(state);
}

}  // namespace

INFLIGHT_EXPORT TRITONSERVER_Error* TRITONBACKEND_Initialize(TRITONBACKEND_Backend* /*backend*/) {
  return guarded([] {
    check_api_version();
    RequestReleaser::start();
  });
}

INFLIGHT_EXPORT TRITONSERVER_Error* TRITONBACKEND_Finalize(TRITONBACKEND_Backend* /*backend*/) {
  return guarded(RequestReleaser::stop);
}

/// The engine chooses its devices itself: one instance unless the configuration says otherwise.
INFLIGHT_EXPORT TRITONSERVER_Error* TRITONBACKEND_GetBackendAttribute(TRITONBACKEND_Backend* /*backend*/,
                                                                      TRITONBACKEND_BackendAttribute* attribute) {
  return TRITONBACKEND_BackendAttributeAddPreferredInstanceGroup(attribute, InstanceGroupKind::kCpu, 1, nullptr, 0);
}

INFLIGHT_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model* model) {
  return guarded([&] {
    auto state = std::make_unique<Model>(model);
    require_ok(TRITONBACKEND_ModelSetState(model, state.get()));
    state.release();
  });
}

INFLIGHT_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model* model) {
  return guarded([&] {
    delete state_of(model);
    malloc_trim(0);  // the allocator would keep it for the next model; it is the machine's
  });
}

INFLIGHT_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInstanceInitialize(TRITONBACKEND_ModelInstance* instance) {
  return guarded([&] {
    TRITONBACKEND_Model* model = nullptr;
    require_ok(TRITONBACKEND_ModelInstanceModel(instance, &model));
    auto state = std::make_unique<ModelInstance>(*state_of(model), instance);
    require_ok(TRITONBACKEND_ModelInstanceSetState(instance, state.get()));
    state.release();
  });
}

INFLIGHT_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInstanceFinalize(TRITONBACKEND_ModelInstance* instance) {
  return guarded([&] { delete state_of(instance); });
}

INFLIGHT_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance* instance,
                                                                       TRITONBACKEND_Request** requests,
                                                                       const uint32_t count) {
  return guarded([&] { state_of(instance)->execute({requests, count}); });
}

}  // namespace inflight::backend
