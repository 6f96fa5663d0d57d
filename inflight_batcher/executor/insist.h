#pragma once

#include <chrono>
#include <exception>
#include <new>
#include <string>
#include <thread>

namespace inflight {

/// Does it, again until memory lasts: whoever waits for an answer gets one.
template <typename Action>
void insist(Action&& action) {
  constexpr auto kMemoryRetryPeriod = std::chrono::milliseconds(10);
  while (true) {
    try {
      return action();
    } catch (const std::bad_alloc&) {
      std::this_thread::sleep_for(kMemoryRetryPeriod);
    }
  }
}

inline std::string text_of(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "an exception that is no std::exception";
  }
}

}  // namespace inflight
