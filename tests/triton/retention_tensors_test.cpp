#include "backend/request_fields.h"
#include "tests/triton/harness.h"

namespace inflight::backend {
namespace {

/// What a row of a request holds after these INT32 inputs.
RetentionConfig parsed(const std::vector<std::pair<std::string, std::vector<int32_t>>>& inputs) {
  TRITONBACKEND_Request request;
  for (const auto& [name, values] : inputs)
    request.inputs.push_back({name, DataType::kInt32, {1, static_cast<int64_t>(values.size())}, {bytes_of(values)}});
  RowRequest row;
  for (uint32_t i = 0; i < inputs.size(); ++i) store_field(read_input(&request, i), 0, 1, row);
  return retention_of(row.retention);
}

TEST(RetentionTensors, NothingGivenIsTheDefault) { EXPECT_TRUE(parsed({}).is_default()); }

TEST(RetentionTensors, OneRangeAtEachPlace) {
  const RetentionConfig config = parsed({{"retention_token_range_starts", {0, 32}},
                                         {"retention_token_range_ends", {32, -1}},
                                         {"retention_token_range_priorities", {100, 0}},
                                         {"retention_token_range_durations_ms", {500, -1}}});
  ASSERT_EQ(config.ranges.size(), 2u);
  EXPECT_EQ(config.ranges[0].begin, 0);
  EXPECT_EQ(config.ranges[0].end, 32);
  EXPECT_EQ(config.ranges[0].retention, (Retention{100, 500}));
  EXPECT_EQ(config.ranges[1].begin, 32);
  EXPECT_EQ(config.ranges[1].end, std::nullopt);
  EXPECT_EQ(config.ranges[1].retention, (Retention{0, std::nullopt}));
  EXPECT_EQ(config.decode, Retention());
}

TEST(RetentionTensors, DecodeStandsAlone) {
  EXPECT_EQ(parsed({{"retention_decode_priority", {70}}, {"retention_decode_duration_ms", {9}}}).decode,
            (Retention{70, 9}));
  EXPECT_EQ(parsed({{"retention_decode_duration_ms", {9}}}).decode, (Retention{35, 9}));
}

TEST(RetentionTensors, DifferentLengths) {
  expect_error(ErrorCode::kInvalidArgument, "have 2, 1, 2 and 0 values", [] {
    parsed({{"retention_token_range_starts", {0, 4}},
            {"retention_token_range_ends", {4}},
            {"retention_token_range_priorities", {1, 2}}});
  });
  expect_error(ErrorCode::kInvalidArgument, "have 1, 1, 1 and 2 values", [] {
    parsed({{"retention_token_range_starts", {0}},
            {"retention_token_range_ends", {4}},
            {"retention_token_range_priorities", {1}},
            {"retention_token_range_durations_ms", {1, 2}}});
  });
  expect_error(ErrorCode::kInvalidArgument, "have 0, 1, 0 and 0 values",
               [] { parsed({{"retention_token_range_ends", {4}}}); });
}

TEST(RetentionTensors, ValuesThatMeanNothing) {
  const auto range = [](int32_t start, int32_t end, int32_t priority, int32_t duration) {
    return parsed({{"retention_token_range_starts", {start}},
                   {"retention_token_range_ends", {end}},
                   {"retention_token_range_priorities", {priority}},
                   {"retention_token_range_durations_ms", {duration}}});
  };
  range(0, -1, 0, -1);
  const ErrorCode code = ErrorCode::kInvalidArgument;
  expect_error(code, "retention_token_range_starts is -1; wanted 0 or more", [&] { range(-1, 4, 35, -1); });
  expect_error(code, "retention_token_range_ends is 4; wanted more than the start 4", [&] { range(4, 4, 35, -1); });
  expect_error(code, "retention_token_range_ends is -2", [&] { range(0, -2, 35, -1); });
  expect_error(code, "retention_token_range_priorities is 101; wanted 0 to 100", [&] { range(0, 4, 101, -1); });
  expect_error(code, "retention_token_range_durations_ms is -2", [&] { range(0, 4, 35, -2); });
  expect_error(code, "retention_decode_priority is -1", [] { parsed({{"retention_decode_priority", {-1}}}); });
}

}  // namespace
}  // namespace inflight::backend
