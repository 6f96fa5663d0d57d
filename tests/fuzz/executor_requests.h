#pragma once

#include "inflight_batcher/api/request.h"
#include "tests/fuzz/dice.h"

namespace inflight::fuzz {

inline constexpr int kMostBeams = 4;
inline constexpr int kVirtualTokens = 6;  // most that a request has

/// A request to an executor of the tiny network, of any kind: most are valid, some have a wild value somewhere.
Request draw_request(Dice& dice);

}  // namespace inflight::fuzz
