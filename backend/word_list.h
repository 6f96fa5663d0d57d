#pragma once

#include <string>
#include <vector>

#include "inflight_batcher/api/request.h"

namespace inflight::backend {

/// Reads the [2, n] form of word lists: row 0 the token ids of all words end to end, row 1 each word's end offset,
/// rising, padded with -1. `values` holds both rows. Throws kInvalidArgument with the input's name.
std::vector<std::vector<TokenId>> parse_word_list(const std::string& name, const std::vector<int32_t>& values);

}  // namespace inflight::backend
