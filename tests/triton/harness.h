#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "inflight/error.h"
#include "tests/triton/fake_triton.h"

namespace inflight::backend {

/// The error that `action` throws; fails the test when it throws none.
inline Error caught(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "no error was thrown";
  return Error(ErrorCode::kInternal, "");
}

/// Expects an error of this code whose text holds `text`.
inline void expect_error(ErrorCode code, const std::string& text, const std::function<void()>& action) {
  const Error error = caught(action);
  EXPECT_EQ(error.code(), code) << error.what();
  EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what() << "\nwanted: " << text;
}

template <typename T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

/// BYTES elements as the server hands them over: each behind its length in 4 bytes.
inline std::string serialized(const std::vector<std::string>& texts) {
  std::string bytes;
  for (const std::string& text : texts) {
    const auto length = static_cast<uint32_t>(text.size());
    bytes.append(reinterpret_cast<const char*>(&length), sizeof(length));
    bytes += text;
  }
  return bytes;
}

}  // namespace inflight::backend
