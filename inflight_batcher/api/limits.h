#pragma once

namespace inflight {

inline constexpr int kMaxReturnSequences = 1024;  // of one request

}  // namespace inflight
