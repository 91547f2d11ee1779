#include "tests/bench/load/measurement.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(PercentileTest, IsTheNearestRank) {
  const std::vector<double> values = {50, 15, 40, 20, 35};
  EXPECT_EQ(Percentile(values, 5), 15);
  EXPECT_EQ(Percentile(values, 30), 20);
  EXPECT_EQ(Percentile(values, 40), 20);
  EXPECT_EQ(Percentile(values, 50), 35);
  EXPECT_EQ(Percentile(values, 100), 50);
}

TEST(PercentileTest, OfOneAndOfNone) {
  EXPECT_EQ(Percentile({7}, 0), 7);
  EXPECT_EQ(Percentile({7}, 99), 7);
  EXPECT_EQ(Percentile({}, 50), 0);
}

absl::Time At(int64_t milliseconds) { return absl::UnixEpoch() + absl::Milliseconds(milliseconds); }

TEST(MeasureTest, CountsFromTheDueTimes) {
  const std::vector<RequestTrace> traces = {
      {At(100), {At(150), At(160), At(180)}}, {At(0), {At(30)}}, {At(400), {At(490), At(500)}}};
  const LoadResult result = Measure(traces);
  EXPECT_EQ(result.requests, 3);
  EXPECT_EQ(result.output_tokens, 6);
  EXPECT_DOUBLE_EQ(result.seconds, 0.5);
  EXPECT_DOUBLE_EQ(result.tokens_per_second, 12);
  EXPECT_DOUBLE_EQ(result.first_token_ms.p50, 50);
  EXPECT_DOUBLE_EQ(result.first_token_ms.p99, 90);
  EXPECT_DOUBLE_EQ(result.inter_token_ms.p50, 10);
  EXPECT_DOUBLE_EQ(result.inter_token_ms.p95, 20);
}

TEST(MeasureTest, OfNothingIsZero) {
  EXPECT_EQ(Measure({}).tokens_per_second, 0);
  const std::vector<RequestTrace> silent = {{At(0), {}}};
  EXPECT_EQ(Measure(silent).requests, 0);
}

}  // namespace
}  // namespace nibble
