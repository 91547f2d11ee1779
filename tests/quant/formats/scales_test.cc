#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "quant/formats/formats.h"

namespace nibble {
namespace {

WeightSpec Spec(Format format, int group_size, ScaleConstraint constraint = ScaleConstraint::kNone,
                M2Rounding rounding = M2Rounding::kMse) {
  WeightSpec spec;
  spec.format = format;
  spec.group_size = group_size;
  spec.constraint = constraint;
  spec.rounding = rounding;
  return spec;
}

// 16 columns a group whose largest magnitude is the given one.
std::vector<float> RowWithGroupMaxima(const std::vector<float>& maxima) {
  std::vector<float> row;
  for (const float maximum : maxima) {
    row.insert(row.end(), 16, 0.25f * maximum);
    row.back() = -maximum;
  }
  return row;
}

std::vector<float> RandomRow(std::mt19937& random, int64_t cols, int group) {
  std::normal_distribution<float> value;
  std::uniform_real_distribution<float> magnitude(-6, 2);
  std::vector<float> row(cols);
  float scale = 1;
  for (int64_t c = 0; c < cols; ++c) {
    if (c % group == 0) scale = std::exp2(magnitude(random));
    row[c] = value(random) * scale;
  }
  return row;
}

double SquaredError(const WeightSpec& spec, const std::vector<float>& row, const RowScales& scales,
                    int64_t begin, int64_t end) {
  const int64_t width = GroupWidth(static_cast<int64_t>(row.size()), spec.group_size);
  double sum = 0;
  for (int64_t c = begin; c < end; ++c) {
    const float scale = scales.scale[c / width];
    const uint8_t zero = spec.asymmetric ? scales.zero[c / width] : 0;
    const uint8_t code = QuantizeWeight(spec, row[c], scale, zero);
    const double error = row[c] - DequantizeWeight(spec, code, scale, zero);
    sum += error * error;
  }
  return sum;
}

TEST(GroupScaleTest, SymmetricIsLargestMagnitudeOverFormatMax) {
  const std::vector<float> values = {1, -3, 2};
  EXPECT_EQ(ComputeGroupScale(Spec(Format::kE2M1, 16), values).scale, 0.5f);
  EXPECT_EQ(ComputeGroupScale(Spec(Format::kE3M0, 16), values).scale, 3.0f / 16);
  EXPECT_EQ(ComputeGroupScale(Spec(Format::kE4M3, 16), values).scale, 3.0f / 448);
  EXPECT_EQ(ComputeGroupScale(Spec(Format::kInt4, 16), values).scale, 3.0f / 7);
  EXPECT_EQ(ComputeGroupScale(Spec(Format::kInt8, 16), values).scale, 3.0f / 127);
}

TEST(GroupScaleTest, AsymmetricRangeIncludesZero) {
  WeightSpec spec = Spec(Format::kInt4, 16);
  spec.asymmetric = true;
  GroupScale scale = ComputeGroupScale(spec, std::vector<float>{-1, 2});
  EXPECT_EQ(scale.scale, 3.0f / 15);
  EXPECT_EQ(scale.zero, 5);  // 1 / 0.2
  scale = ComputeGroupScale(spec, std::vector<float>{3, 6});
  EXPECT_EQ(scale.scale, 6.0f / 15);
  EXPECT_EQ(scale.zero, 0);
  scale = ComputeGroupScale(spec, std::vector<float>{-30, -15});
  EXPECT_EQ(scale.scale, 2);
  EXPECT_EQ(scale.zero, 15);
  EXPECT_EQ(QuantizeWeight(spec, -30, scale.scale, scale.zero), 0);
  EXPECT_EQ(DequantizeWeight(spec, 0, scale.scale, scale.zero), -30);
  spec.format = Format::kInt8;
  scale = ComputeGroupScale(spec, std::vector<float>{-1, 254});
  EXPECT_EQ(scale.scale, 1);
  EXPECT_EQ(scale.zero, 1);
  EXPECT_EQ(QuantizeWeight(spec, 300, scale.scale, scale.zero), 255);
  EXPECT_EQ(QuantizeWeight(spec, -300, scale.scale, scale.zero), 0);
}

TEST(GroupScaleTest, ZerosAndHugeRangesStayFinite) {
  const std::vector<float> zeros(16);
  EXPECT_EQ(ComputeGroupScale(Spec(Format::kE2M1, 16), zeros).scale, kMinScale);
  WeightSpec spec = Spec(Format::kInt4, 16);
  spec.asymmetric = true;
  EXPECT_EQ(ComputeGroupScale(spec, zeros).scale, kMinScale);
  const float max = std::numeric_limits<float>::max();
  EXPECT_TRUE(std::isfinite(ComputeGroupScale(spec, std::vector<float>{-max, max}).scale));
}

TEST(RowScalesTest, ZeroRowHasCodesZero) {
  const std::vector<float> zeros(40);
  for (const auto constraint :
       {ScaleConstraint::kNone, ScaleConstraint::kM1, ScaleConstraint::kM2}) {
    const WeightSpec spec = Spec(Format::kE2M1, 16, constraint);
    const RowScales scales = ComputeRowScales(spec, zeros);
    ASSERT_EQ(scales.scale.size(), 3u);
    EXPECT_EQ(scales.clamped, 0);
    for (const float scale : scales.scale) {
      EXPECT_GT(scale, 0);
      EXPECT_EQ(QuantizeWeight(spec, 0, scale, 0), 0);
    }
  }
}

TEST(RowScalesTest, M1RoundsUpToPowersOfTwoWithin11) {
  // Scales amax / 6: 1, 1.01, 2^-11, 2^-12.
  const std::vector<float> row = RowWithGroupMaxima({6, 6.06f, 6.0f / 2048, 6.0f / 4096});
  const RowScales scales = ComputeRowScales(Spec(Format::kE2M1, 16, ScaleConstraint::kM1), row);
  EXPECT_EQ(scales.exponent, (std::vector<int>{0, 1, -10, -10}));
  EXPECT_EQ(scales.scale, (std::vector<float>{1, 2, 1.0f / 1024, 1.0f / 1024}));
  EXPECT_EQ(scales.clamped, 2);
}

TEST(RowScalesTest, M2RoundsTheExponentAsAsked) {
  // S_max / S_g: 1, 2 exactly, 3, 2^12.
  const std::vector<float> row = RowWithGroupMaxima({6, 3, 2, 6.0f / 4096});
  RowScales scales =
      ComputeRowScales(Spec(Format::kE2M1, 16, ScaleConstraint::kM2, M2Rounding::kCeil), row);
  EXPECT_EQ(scales.row_scale, 1);
  EXPECT_EQ(scales.exponent, (std::vector<int>{0, 1, 2, 11}));
  EXPECT_EQ(scales.scale, (std::vector<float>{1, 0.5f, 0.25f, 1.0f / 2048}));
  EXPECT_EQ(scales.clamped, 1);
  scales = ComputeRowScales(Spec(Format::kE2M1, 16, ScaleConstraint::kM2, M2Rounding::kFloor), row);
  EXPECT_EQ(scales.exponent, (std::vector<int>{0, 1, 1, 11}));
}

TEST(RowScalesTest, M2MseTakesTheBetterOfBoth) {
  // S_max = 1. Group 1 has the scale 0.75: at k = 0 all its values, multiples of 1.5 up to 4.5 but
  // 4.5 itself, are E2M1 numbers; at k = 1 4.5 clips to 3. Group 2 has one 3.5 and is otherwise
  // 0.25: at k = 0 those vanish, at k = 1 they are exact and 3.5 clips to 3.
  std::vector<float> row(48, 0.0f);
  row[0] = 6;
  std::fill(row.begin() + 16, row.begin() + 32, 1.5f);
  row[16] = 4.5f;
  std::fill(row.begin() + 32, row.end(), 0.25f);
  row[32] = 3.5f;
  const RowScales scales =
      ComputeRowScales(Spec(Format::kE2M1, 16, ScaleConstraint::kM2, M2Rounding::kMse), row);
  EXPECT_EQ(scales.exponent, (std::vector<int>{0, 0, 1}));
}

TEST(RowScalesTest, PropertiesOfRandomRows) {
  const uint32_t seed = 20240611;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  for (int trial = 0; trial < 200; ++trial) {
    const int64_t cols = 1 + static_cast<int64_t>(random() % 150);
    const std::vector<float> row = RandomRow(random, cols, 32);
    const Format format = static_cast<Format>(random() % 6);
    double error[3];
    for (const auto rounding : {M2Rounding::kCeil, M2Rounding::kFloor, M2Rounding::kMse}) {
      const WeightSpec spec = Spec(format, 32, ScaleConstraint::kM2, rounding);
      const RowScales scales = ComputeRowScales(spec, row);
      for (size_t g = 0; g < scales.scale.size(); ++g) {
        ASSERT_GE(scales.exponent[g], 0);
        ASSERT_LE(scales.exponent[g], kMaxExponentOffset);
        ASSERT_EQ(scales.scale[g], std::ldexp(scales.row_scale, -scales.exponent[g]));
      }
      error[static_cast<int>(rounding)] = SquaredError(spec, row, scales, 0, cols);
    }
    // Sums over the groups; 1e-12 for the order in which they are added.
    const double best = std::min(error[0], error[1]);
    ASSERT_LE(error[2], best * (1 + 1e-12)) << FormatName(format) << " trial " << trial;
  }
}

// Integers are at most half a step off, floating-point numbers half the step at their magnitude.
TEST(RowScalesTest, ErrorIsAtMostHalfAStep) {
  const uint32_t seed = 77;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  for (int trial = 0; trial < 300; ++trial) {
    const std::vector<float> row = RandomRow(random, 1 + static_cast<int64_t>(random() % 100), 16);
    WeightSpec spec = Spec(static_cast<Format>(random() % 6), 16);
    spec.asymmetric = IsInteger(spec.format) && random() % 2 == 0;
    const RowScales scales = ComputeRowScales(spec, row);
    for (size_t c = 0; c < row.size(); ++c) {
      const float scale = scales.scale[c / 16];
      const uint8_t zero = spec.asymmetric ? scales.zero[c / 16] : 0;
      const float back =
          DequantizeWeight(spec, QuantizeWeight(spec, row[c], scale, zero), scale, zero);
      const double magnitude = std::fabs(row[c] / scale);
      double step = 1;
      if (spec.format == Format::kE2M1) step = magnitude < 2 ? 0.5 : magnitude < 4 ? 1 : 2;
      if (spec.format == Format::kE3M0)
        step = std::exp2(std::floor(std::log2(std::max(magnitude, 0.25))));
      if (spec.format == Format::kE4M3)
        step = std::exp2(std::floor(std::log2(std::max(magnitude, std::exp2(-6.0)))) - 3);
      if (spec.format == Format::kE5M2)
        step = std::exp2(std::floor(std::log2(std::max(magnitude, std::exp2(-14.0)))) - 2);
      // A rounded zero point may push one end of an asymmetric range half a step out, and clip it.
      const double halves = spec.asymmetric ? 1.0 : 0.5;
      // 1e-5 of the magnitude: a few roundings of f32, of the division and the product.
      ASSERT_LE(std::fabs(back - row[c]), halves * step * scale + 1e-5 * std::fabs(row[c]))
          << FormatName(spec.format) << " " << row[c] << " scale " << scale;
    }
  }
}

TEST(UpdateGroupScaleTest, M2KeepsTheRowScaleAndClampsBothEnds) {
  const WeightSpec spec = Spec(Format::kE2M1, 16, ScaleConstraint::kM2, M2Rounding::kCeil);
  RowScales row = ComputeRowScales(spec, RowWithGroupMaxima({6, 3, 3}));
  UpdateGroupScale(spec, RowWithGroupMaxima({12.1f}), 0, row);  // log2(1 / 2.02), ceil: -1
  EXPECT_EQ(row.row_scale, 1);
  EXPECT_EQ(row.exponent[0], 0);
  EXPECT_EQ(row.clamped, 1);
  UpdateGroupScale(spec, RowWithGroupMaxima({1.5f}), 1, row);
  EXPECT_EQ(row.exponent[1], 2);
  EXPECT_EQ(row.scale[1], 0.25f);
  UpdateGroupScale(spec, RowWithGroupMaxima({6.0f / 8192}), 2, row);
  EXPECT_EQ(row.exponent[2], 11);
  EXPECT_EQ(row.clamped, 2);
}

TEST(UpdateGroupScaleTest, NoneTakesTheUpdatedScaleAndZero) {
  WeightSpec spec = Spec(Format::kInt4, 16);
  spec.asymmetric = true;
  RowScales row = ComputeRowScales(spec, RowWithGroupMaxima({6, 3}));
  UpdateGroupScale(spec, std::vector<float>{-5, 10}, 1, row);
  EXPECT_EQ(row.scale[1], 1);
  EXPECT_EQ(row.zero[1], 5);
}

// Whatever the updated weights are, the exponents of a row end within 11 of each other.
TEST(UpdateGroupScaleTest, M1StaysWithin11OfEachOther) {
  const uint32_t seed = 5;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> log_magnitude(-20, 20);
  const WeightSpec spec = Spec(Format::kE2M1, 16, ScaleConstraint::kM1);
  for (int trial = 0; trial < 500; ++trial) {
    std::vector<float> maxima(6);
    for (float& m : maxima) m = std::exp2(log_magnitude(random));
    RowScales row = ComputeRowScales(spec, RowWithGroupMaxima(maxima));
    for (int64_t g = 0; g < 6; ++g) {
      UpdateGroupScale(spec, RowWithGroupMaxima({std::exp2(log_magnitude(random))}), g, row);
    }
    const auto [low, high] = std::minmax_element(row.exponent.begin(), row.exponent.end());
    ASSERT_LE(*high - *low, kMaxExponentOffset) << "trial " << trial;
  }
}

TEST(WeightSpecTest, AcceptsOnlyWhatIsDefined) {
  for (const int group : {16, 32, 64, 128, 256, 512, 1024, -1}) {
    EXPECT_TRUE(Spec(Format::kE2M1, group, ScaleConstraint::kM2).Validate().ok()) << group;
  }
  for (const int group : {0, 1, -2, 17, 48, 2048}) {
    const absl::Status status = Spec(Format::kE2M1, group).Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << group;
    EXPECT_NE(std::string(status.message()).find("group_size: found "), std::string::npos);
  }
  WeightSpec spec = Spec(Format::kE2M1, 16);
  spec.asymmetric = true;
  EXPECT_EQ(spec.Validate().code(), absl::StatusCode::kInvalidArgument);
  spec.format = Format::kInt8;
  EXPECT_TRUE(spec.Validate().ok());
  spec.constraint = ScaleConstraint::kM1;
  EXPECT_EQ(spec.Validate().code(), absl::StatusCode::kInvalidArgument);
}

TEST(ScaleNamesTest, ParseBack) {
  for (const auto c : {ScaleConstraint::kNone, ScaleConstraint::kM1, ScaleConstraint::kM2}) {
    EXPECT_EQ(*ParseScaleConstraint(ScaleConstraintName(c)), c);
  }
  for (const auto r : {M2Rounding::kCeil, M2Rounding::kFloor, M2Rounding::kMse}) {
    EXPECT_EQ(*ParseM2Rounding(M2RoundingName(r)), r);
  }
  EXPECT_FALSE(ParseScaleConstraint("m3").ok());
  EXPECT_FALSE(ParseM2Rounding("round").ok());
}

}  // namespace
}  // namespace nibble
