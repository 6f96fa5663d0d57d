#pragma once

#include <cstdint>
#include <string>

namespace inflight::backend {

/// One string value of the configuration. The readers throw kInvalidArgument with the key, what was found and what was
/// wanted.
class ParameterValue {
 public:
  ParameterValue(const std::string& key, const std::string& text) : key_(key), text_(text) {}

  const std::string& key() const { return key_; }
  const std::string& text() const { return text_; }

  /// A template variable that nobody filled in: "${...}".
  bool is_unfilled() const { return text_.starts_with("${") && text_.ends_with("}"); }

  /// true/True/TRUE/1 or false/False/FALSE/0.
  bool boolean() const;
  int64_t integer(int64_t least, int64_t most) const;
  int small_integer(int least) const;
  double number(double least, double most) const;

 private:
  std::string key_;
  std::string text_;
};

}  // namespace inflight::backend
