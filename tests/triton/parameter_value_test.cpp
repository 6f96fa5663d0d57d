#include "backend/parameter_value.h"

#include "tests/triton/harness.h"

namespace inflight::backend {
namespace {

ParameterValue value(const std::string& text) { return {"key", text}; }

TEST(ParameterValue, Unfilled) {
  EXPECT_TRUE(value("${max_beam_width}").is_unfilled());
  EXPECT_FALSE(value("4").is_unfilled());
  EXPECT_FALSE(value("$4").is_unfilled());
  EXPECT_FALSE(value("").is_unfilled());
}

TEST(ParameterValue, Boolean) {
  for (const char* text : {"true", "True", "TRUE", "1"}) EXPECT_TRUE(value(text).boolean()) << text;
  for (const char* text : {"false", "False", "FALSE", "0"}) EXPECT_FALSE(value(text).boolean()) << text;
  for (const char* text : {"yes", "2", "", " true", "truefalse"}) {
    expect_error(ErrorCode::kInvalidArgument, std::string("parameter key is '") + text + "'; wanted true or false",
                 [&] { value(text).boolean(); });
  }
}

TEST(ParameterValue, Integer) {
  EXPECT_EQ(value("-3").integer(-3, 5), -3);
  EXPECT_EQ(value("9000000000").integer(0, INT64_MAX), 9000000000);
  EXPECT_EQ(value("7").small_integer(1), 7);
  for (const char* text : {"0", "6", "many", "", "3x", "3.5", " 3", "99999999999999999999"}) {
    expect_error(ErrorCode::kInvalidArgument,
                 std::string("parameter key is '") + text + "'; wanted a number from 1 to 5",
                 [&] { value(text).integer(1, 5); });
  }
  expect_error(ErrorCode::kInvalidArgument, "wanted a number from 1 to 2147483647",
               [] { value("3000000000").small_integer(1); });
}

TEST(ParameterValue, Number) {
  EXPECT_DOUBLE_EQ(value("0.25").number(0, 1), 0.25);
  EXPECT_DOUBLE_EQ(value("1e-3").number(0, 1), 0.001);
  for (const char* text : {"1.01", "-0.1", "nan", "inf", "0.5 ", "half"}) {
    expect_error(ErrorCode::kInvalidArgument, "wanted a number from 0 to 1", [&] { value(text).number(0, 1); });
  }
}

}  // namespace
}  // namespace inflight::backend
