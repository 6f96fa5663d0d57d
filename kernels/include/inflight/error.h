#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace inflight {

/// The kinds of failure a caller can act on; the backend maps them one to one to Triton's error codes.
enum class ErrorCode { kInternal, kNotFound, kInvalidArgument, kUnavailable, kUnsupported, kAlreadyExists, kCancelled };

/// The one exception type of the project. The text names the thing, what was found and what was wanted.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

/// Joins its arguments into one text: concat("head size ", 7, " is odd").
template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  text.exceptions(std::ios::badbit);  // else a text cut short where memory runs out
  (text << ... << parts);
  return text.str();
}

/// Throws Error(code, concat(parts...)) unless `condition` holds. The text is built only on failure.
template <typename... Parts>
void check(bool condition, ErrorCode code, const Parts&... parts) {
  if (!condition) [[unlikely]]
    throw Error(code, concat(parts...));
}

}  // namespace inflight
