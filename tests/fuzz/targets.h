#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/fuzz/dice.h"

namespace inflight::fuzz {

/// Something that takes input from outside. One case either passes or throws inflight::Error; anything else that it
/// throws, or an end of the process, is a finding.
class Target {
 public:
  virtual ~Target() = default;
  virtual void run(Dice& dice) = 0;

  /// After the last case.
  virtual void finish() {}
};

struct NamedTarget {
  std::string name;
  double cost;  // of a case, relative to a cheap one: it gets so many cases fewer
  std::function<std::unique_ptr<Target>()> make;
};

std::vector<NamedTarget> request_targets();
std::vector<NamedTarget> text_targets();
std::vector<NamedTarget> file_targets();
std::vector<NamedTarget> executor_targets();

}  // namespace inflight::fuzz
