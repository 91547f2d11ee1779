#include "quant/pipeline/activation_statistics.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <random>

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Tokens = std::vector<std::vector<float>>;

FirstPass First(const Tokens& tokens) {
  FirstPass first(static_cast<int64_t>(tokens[0].size()));
  for (const auto& token : tokens) EXPECT_TRUE(first.Add(token).ok());
  return first;
}

TEST(MomentsTest, OfOneFiveAndThreeOnes) {
  // Mean 2, differences -1 -1 -1 3: squares 12, cubes 24, fourth powers 84.
  Moments moments;
  moments.Add(std::vector<float>{1, 1});
  moments.Add(std::vector<float>{1});
  moments.Add(std::vector<float>{5});
  EXPECT_EQ(moments.count, 4);
  EXPECT_DOUBLE_EQ(moments.mean, 2);
  EXPECT_DOUBLE_EQ(moments.m2, 12);
  EXPECT_DOUBLE_EQ(moments.m3, 24);
  EXPECT_DOUBLE_EQ(moments.m4, 84);
  EXPECT_DOUBLE_EQ(moments.StandardDeviation(), std::sqrt(3.0));
  EXPECT_DOUBLE_EQ(moments.Kurtosis(), 4 * 84 / 144.0);
}

TEST(MomentsTest, EqualValuesHaveNoKurtosis) {
  Moments moments;
  for (int i = 0; i < 3; ++i) moments.Add(std::vector<float>{0.1f, 0.1f});
  EXPECT_DOUBLE_EQ(moments.mean, 0.1f);
  EXPECT_EQ(moments.StandardDeviation(), 0);
  EXPECT_EQ(moments.Kurtosis(), 0);
}

TEST(QuantilesTest, AreInterpolatedBetweenNeighbours) {
  EXPECT_THAT(Quantiles({3, -13, 1, 0}, {0, 0.25, 0.5, 0.75, 1}),
              ElementsAre(-13, -3.25, 0.5, 1.5, 3));
  EXPECT_THAT(Quantiles({7}, {0, 0.3, 1}), ElementsAre(7, 7, 7));
}

TEST(FindOutliersTest, OverTheMedianLargestFirst) {
  // The median of 1 2 2 4 10 40 is 3.
  const std::vector<float> magnitudes = {2, 40, 1, 4, 10, 2};
  const auto outliers = FindOutliers(magnitudes, 3, 32);
  ASSERT_EQ(outliers.size(), 2u);
  EXPECT_EQ(outliers[0].channel, 1);
  EXPECT_EQ(outliers[0].max_magnitude, 40);
  EXPECT_DOUBLE_EQ(outliers[0].ratio, 40 / 3.0);
  EXPECT_EQ(outliers[1].channel, 4);
  EXPECT_EQ(FindOutliers(magnitudes, 3, 1).size(), 1u);
  EXPECT_TRUE(FindOutliers(magnitudes, 3, 0).empty());
  EXPECT_TRUE(FindOutliers(magnitudes, 40 / 3.0, 32).empty());
}

TEST(FindOutliersTest, OfDeadChannelsEveryLiveOneIs) {
  const auto outliers = FindOutliers(std::vector<float>{0, 0, 0, 5}, 20, 32);
  ASSERT_EQ(outliers.size(), 1u);
  EXPECT_TRUE(std::isinf(outliers[0].ratio));
}

TEST(FirstPassTest, RangesAndChannels) {
  const FirstPass first = First({{1, -2, 3, 0}, {2, 2, 2, -13}});
  EXPECT_EQ(first.values(), 8);
  EXPECT_EQ(first.min(), -13);
  EXPECT_EQ(first.max(), 3);
  EXPECT_THAT(first.token_ranges(), ElementsAre(5, 15));
  EXPECT_THAT(first.channel_magnitudes(), ElementsAre(2, 2, 3, 13));
}

TEST(FirstPassTest, RefusesWhatIsNotFinite) {
  FirstPass first(2);
  EXPECT_THAT(first.Add(std::vector<float>{1, NAN}).message(), HasSubstr("nan in channel 1"));
  EXPECT_THAT(first.Add(std::vector<float>{-INFINITY, 1}).message(),
              HasSubstr("-inf in channel 0"));
}

TEST(SecondPassTest, CountsBinsOfEqualWidthWithTheMaximumInTheLast) {
  const Tokens tokens = {{1, -2, 3, 0}, {2, 2, 2, -13}};
  const FirstPass first = First(tokens);
  SecondPass second(first, 4, {});  // -13 .. -9 .. -5 .. -1 .. 3
  for (const auto& token : tokens) second.Add(token);
  EXPECT_THAT(second.histogram(), ElementsAre(1, 0, 1, 6));
  SecondPass edges(first, 16, {});  // every value but 3 begins a bin
  for (const auto& token : tokens) edges.Add(token);
  EXPECT_THAT(edges.histogram(), ElementsAre(1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 1, 4));
}

TEST(SecondPassTest, EqualValuesFillTheLastBin) {
  const Tokens tokens = {{-0.0f, 0.0f}};
  const FirstPass first = First(tokens);
  SecondPass second(first, 3, {{0, 0.5, 1}});
  second.Add(tokens[0]);
  EXPECT_THAT(second.histogram(), ElementsAre(0, 0, 2));
  EXPECT_THAT(second.Quantiles().value(), ElementsAre(0, 0, 0));
}

TEST(SecondPassTest, OtherValuesThanTheFirstPassHadAreAnError) {
  const FirstPass first = First({{1, 2, 3}});
  SecondPass second(first, 4, {{0.5}});
  second.Add(std::vector<float>{1, 20, 3});
  EXPECT_EQ(second.Quantiles().status().code(), absl::StatusCode::kInternal);
}

// Everything, against sorting and long doubles.
TEST(ActivationStatisticsTest, AgreeWithSortedValuesAndLongDoubles) {
  const std::vector<double> probabilities = {0, 0.001, 0.37, 0.5, 0.95, 0.9999, 1};
  for (uint32_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(static_cast<float>(seed % 5), 1);
    const size_t channels = 1 + random() % 300;
    Tokens tokens(1 + random() % 60, std::vector<float>(channels));
    std::vector<float> sorted;
    for (auto& token : tokens) {
      for (float& x : token) x = normal(random) * (random() % 100 == 0 ? 60.0f : 1.0f);
      if (seed % 2 == 0) token[0] = -std::exp2(static_cast<float>(random() % 200) - 100);
      sorted.insert(sorted.end(), token.begin(), token.end());
    }
    const FirstPass first = First(tokens);
    SecondPass second(first, 57, probabilities);
    for (const auto& token : tokens) second.Add(token);

    std::ranges::sort(sorted);
    const auto count = static_cast<long double>(sorted.size());
    EXPECT_EQ(first.min(), sorted.front());
    EXPECT_EQ(first.max(), sorted.back());
    EXPECT_EQ(second.Quantiles().value(), Quantiles({sorted.begin(), sorted.end()}, probabilities));
    std::vector<int64_t> histogram(57);
    for (const float x : sorted) {
      const double width = double{sorted.back()} - double{sorted.front()};
      const double place = width == 0 ? 1 : (x - double{sorted.front()}) / width;
      ++histogram[std::min<size_t>(56, static_cast<size_t>(place * 57))];
    }
    EXPECT_EQ(second.histogram(), histogram);
    long double mean = 0, m2 = 0, m4 = 0;
    for (const float x : sorted) mean += x / count;
    for (const float x : sorted) {
      m2 += (x - mean) * (x - mean);
      m4 += (x - mean) * (x - mean) * (x - mean) * (x - mean);
    }
    // Sums of up to 18000 doubles, whose roundings could all add up: 18000 * 2^-53 = 2e-12.
    constexpr double kBound = 2e-12;
    EXPECT_NEAR(first.moments().mean, static_cast<double>(mean),
                kBound * std::sqrt(static_cast<double>(m2 / count + mean * mean)));
    EXPECT_NEAR(first.moments().m2, static_cast<double>(m2), 4 * kBound * static_cast<double>(m2));
    EXPECT_NEAR(first.moments().m4, static_cast<double>(m4), 8 * kBound * static_cast<double>(m4));
  }
}

}  // namespace
}  // namespace nibble
