#pragma once

#include "backend/request_fields.h"

namespace inflight::backend {

/// The field of an input of a text model, or null: the ensemble's names for texts and for tensors of the engine model,
/// and all other names of the engine model.
const RequestField* find_text_field(std::string_view name);

}  // namespace inflight::backend
