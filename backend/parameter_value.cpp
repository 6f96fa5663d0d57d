#include "backend/parameter_value.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <limits>

#include "inflight/error.h"

namespace inflight::backend {

namespace {

template <typename Number>
Number parse_number(const std::string& key, const std::string& text, Number least, Number most) {
  Number value{};
  const char* end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, value);
  check(result.ec == std::errc() && result.ptr == end && value >= least && value <= most, ErrorCode::kInvalidArgument,
        "parameter ", key, " is '", text, "'; wanted a number from ", least, " to ", most);
  return value;
}

}  // namespace

bool ParameterValue::boolean() const {
  std::string lower = text_;
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  const bool is_true = lower == "true" || lower == "1";
  check(is_true || lower == "false" || lower == "0", ErrorCode::kInvalidArgument, "parameter ", key_, " is '", text_,
        "'; wanted true or false");
  return is_true;
}

int64_t ParameterValue::integer(int64_t least, int64_t most) const { return parse_number(key_, text_, least, most); }

int ParameterValue::small_integer(int least) const {
  return static_cast<int>(integer(least, std::numeric_limits<int>::max()));
}

double ParameterValue::number(double least, double most) const { return parse_number(key_, text_, least, most); }

}  // namespace inflight::backend
