#include "quant/kernels/plan/sampling.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "tests/quant/kernels/plan/sampling_reference.h"

namespace nibble {
namespace {

TEST(WeightOf, IsTwoToTheMinusDepth) {
  EXPECT_EQ(WeightOf(0), uint64_t{1} << 40);
  EXPECT_EQ(WeightOf(1u << kDepthFraction), uint64_t{1} << 39);
  EXPECT_EQ(WeightOf(kDepthEnd - 1), 1u);
  EXPECT_EQ(WeightOf(kDepthEnd), 0u);
  EXPECT_EQ(WeightOf(UINT32_MAX), 0u);
  for (uint32_t depth = 0; depth < kDepthEnd; depth += 977) {
    const double exact = std::exp2(40 - std::ldexp(depth, -kDepthFraction));
    ASSERT_NEAR(static_cast<double>(WeightOf(depth)), exact, 6e-7 * exact + 1) << depth;
  }
}

TEST(WeightOf, NeverRisesWithTheDepthByMoreThanItsError) {
  for (uint32_t depth = 1; depth < kDepthEnd; ++depth) {
    ASSERT_LE(static_cast<double>(WeightOf(depth)),
              static_cast<double>(WeightOf(depth - 1)) * (1 + 1e-6) + 1)
        << depth;
  }
}

TEST(DepthOf, CountsBitsBelowTheLargest) {
  const float c = std::log2(std::exp(1.f));
  EXPECT_EQ(DepthOf(5, 5, c), 0u);
  EXPECT_EQ(DepthOf(4, 6, 0.5f), 1u << kDepthFraction);
  EXPECT_GE(DepthOf(-INFINITY, 5, c), kDepthEnd);
  EXPECT_GE(DepthOf(-3e38f, 3e38f, c), kDepthEnd);  // the difference overflows
  EXPECT_LT(DepthOf(0, 39.9f, 1), kDepthEnd);
  EXPECT_GE(DepthOf(0, 40.f, 1), kDepthEnd);
}

TEST(MakeSamplingRow, ConvertsAndRefuses) {
  const auto row =
      MakeSamplingRow({.temperature = 0.5f, .top_k = 7, .top_p = 0.25f, .min_p = 0.5f});
  ASSERT_TRUE(row.ok());
  EXPECT_FLOAT_EQ(row->bits_per_logit, static_cast<float>(2 / std::log(2.0)));
  EXPECT_EQ(row->top_p, uint64_t{1} << 30);
  EXPECT_EQ(row->min_p_depth, 1u << kDepthFraction);
  EXPECT_EQ(row->top_k, 7);
  EXPECT_EQ(MakeSamplingRow({.temperature = 0})->bits_per_logit, 0.f);
  EXPECT_TRUE(std::isfinite(MakeSamplingRow({.temperature = 1e-44f})->bits_per_logit));
  EXPECT_EQ(MakeSamplingRow({.top_p = 0}).status().message(),
            "top_p: found 0, expected a number above 0 and up to 1");
  EXPECT_FALSE(MakeSamplingRow({.temperature = NAN}).ok());
  EXPECT_FALSE(MakeSamplingRow({.temperature = -1}).ok());
  EXPECT_FALSE(MakeSamplingRow({.top_k = -1}).ok());
  EXPECT_FALSE(MakeSamplingRow({.min_p = 1.5f}).ok());
}

TEST(UniformBits, DependsOnSeedAndPositionAlone) {
  EXPECT_EQ(UniformBits(7, 9), UniformBits(7, 9));
  EXPECT_NE(UniformBits(7, 9), UniformBits(7, 10));
  EXPECT_NE(UniformBits(7, 9), UniformBits(8, 9));
  EXPECT_LT(UniformBits(123, 456), uint64_t{1} << 53);
}

// Probabilities 1/2, 1/4, 1/8, 1/8 at T = 1; the id order differs from the ranking.
TEST(SampleByReference, KeepsTheHeadsThatItSays) {
  const float ln2 = std::log(2.f);
  const std::vector<float> logits = {-3 * ln2, -1 * ln2, -3 * ln2, -2 * ln2, -INFINITY};
  const auto ids = [&](const SamplingOptions& options) {
    std::vector<int> counts(logits.size());
    for (int position = 0; position < 4000; ++position) {
      ++counts[SampleByReference(logits, *MakeSamplingRow(options), position)];
    }
    return counts;
  };
  const std::vector<int> all = ids({});
  EXPECT_NEAR(all[1], 2000, 160);  // 5 standard deviations of a binomial
  EXPECT_NEAR(all[3], 1000, 140);
  EXPECT_NEAR(all[0], 500, 105);
  EXPECT_NEAR(all[2], 500, 105);
  EXPECT_EQ(all[4], 0);
  EXPECT_EQ(ids({.temperature = 0})[1], 4000);
  EXPECT_EQ(ids({.top_k = 1})[1], 4000);
  const std::vector<int> three = ids({.top_k = 3});  // of the equal ones the lower id
  EXPECT_GT(three[0], 0);
  EXPECT_EQ(three[2], 0);
  EXPECT_EQ(ids({.top_p = 0.4f})[1], 4000);
  const std::vector<int> two = ids({.top_p = 0.6f});
  EXPECT_NEAR(two[1], 2667, 150);
  EXPECT_EQ(two[0] + two[2], 0);
  EXPECT_EQ(ids({.min_p = 0.6f})[1], 4000);
  EXPECT_EQ(ids({.min_p = 0.4f})[0], 0);
}

}  // namespace
}  // namespace nibble
