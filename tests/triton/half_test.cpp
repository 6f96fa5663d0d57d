#include "backend/half.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace inflight::backend {
namespace {

/// The number that a half's bits stand for, by the definition of the format.
double value_of(uint16_t half) {
  const int exponent = (half >> 10) & 0x1f;
  const int fraction = half & 0x3ff;
  const double sign = (half & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}

TEST(Half, KeepsEveryHalf) {
  for (int bits = 0; bits < 0x10000; ++bits) {
    if (((bits >> 10) & 0x1f) == 0x1f) continue;  // infinities and NaN
    ASSERT_EQ(to_half(static_cast<float>(value_of(static_cast<uint16_t>(bits)))), bits);
  }
}

TEST(Half, RoundsToTheNearestAndTiesToEven) {
  for (uint16_t bits = 0; bits < 0x7bff; ++bits) {
    const auto low = static_cast<float>(value_of(bits));
    const auto high = static_cast<float>(value_of(bits + 1));
    const float middle = (low + high) / 2;  // exact: a float has bits to spare
    ASSERT_EQ(to_half(middle), bits + (bits & 1)) << low;
    ASSERT_EQ(to_half(std::nextafter(middle, low)), bits) << low;
    ASSERT_EQ(to_half(std::nextafter(middle, high)), bits + 1) << low;
    ASSERT_EQ(to_half(-middle), 0x8000 | (bits + (bits & 1))) << low;
  }
}

TEST(Half, BeyondTheRange) {
  EXPECT_EQ(to_half(65519.0f), 0x7bff);
  EXPECT_EQ(to_half(65520.0f), 0x7c00);
  EXPECT_EQ(to_half(-1e30f), 0xfc00);
  EXPECT_EQ(to_half(std::numeric_limits<float>::infinity()), 0x7c00);
  EXPECT_EQ(to_half(1e-30f), 0x0000);
  EXPECT_EQ(to_half(-1e-30f), 0x8000);
  const uint16_t nan = to_half(std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(nan & 0x7c00, 0x7c00);
  EXPECT_NE(nan & 0x03ff, 0);
}

TEST(Half, EveryHalfComesBack) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = from_half(static_cast<uint16_t>(bits));
    if ((bits & 0x7fff) > 0x7c00)
      EXPECT_TRUE(std::isnan(value)) << bits;
    else
      EXPECT_EQ(to_half(value), bits);
  }
}

}  // namespace
}  // namespace inflight::backend
