#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace inflight::fuzz {

/// Everything that is drawn for one case: the same seed gives the same case.
class Dice {
 public:
  explicit Dice(uint64_t seed) : random_(seed) {}

  /// Of 0 .. n - 1.
  int64_t below(int64_t n) { return std::uniform_int_distribution<int64_t>(0, n - 1)(random_); }
  int64_t between(int64_t least, int64_t most) { return std::uniform_int_distribution<int64_t>(least, most)(random_); }
  bool chance(double share) { return std::uniform_real_distribution<>(0, 1)(random_) < share; }
  std::mt19937_64& bits() { return random_; }

  template <typename T>
  const T& pick(const std::vector<T>& choices) {
    return choices[static_cast<size_t>(below(static_cast<int64_t>(choices.size())))];
  }

  /// Small, at an edge of its type, or anything.
  int64_t integer() {
    static const std::vector<int64_t> kEdges = {0,
                                                -1,
                                                1,
                                                255,
                                                65536,
                                                INT32_MAX,
                                                INT32_MIN,
                                                INT32_MAX - 1,
                                                static_cast<int64_t>(INT32_MAX) + 1,
                                                INT64_MAX,
                                                INT64_MIN,
                                                INT64_MAX / 2};
    if (chance(0.5)) return between(-3, 30);
    return chance(0.7) ? pick(kEdges) : static_cast<int64_t>(random_());
  }

  double real() {
    static const std::vector<double> kEdges = {0.0,    -0.0, 1.0,   -1.0,   std::nan(""), INFINITY, -INFINITY, 1e-45,
                                               1e-300, 1e30, -1e30, 3.4e38, 1e300,        0.5,      1.0000001};
    if (chance(0.4)) return std::uniform_real_distribution<>(-2, 2)(random_);
    return pick(kEdges);
  }

  std::string bytes(int64_t longest) {
    std::string text(static_cast<size_t>(below(longest + 1)), '\0');
    for (char& letter : text) letter = static_cast<char>(random_());
    return text;
  }

  /// Bytes flipped, cut out, doubled or cut short.
  std::string damaged(std::string text) {
    for (int64_t count = between(1, 4); count > 0 && !text.empty(); --count) {
      const auto place = static_cast<size_t>(below(static_cast<int64_t>(text.size())));
      const auto length = static_cast<size_t>(between(1, 8));
      switch (below(6)) {
        case 0: text[place] = static_cast<char>(random_()); break;
        case 1: text[place] = static_cast<char>(text[place] ^ (1 << below(8))); break;
        case 2: text.erase(place, length); break;
        case 3: text.insert(place, text.substr(place, length)); break;
        case 4: text.replace(place, 1, std::to_string(integer())); break;
        default: text.resize(place);
      }
    }
    return text;
  }

 private:
  std::mt19937_64 random_;
};

}  // namespace inflight::fuzz
