#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "quant/formats/formats.h"

namespace nibble {
namespace {

std::vector<float> Rounded(const ActivationSpec& spec, std::vector<float> row) {
  RoundActivationRow(spec, absl::MakeSpan(row));
  return row;
}

// The loop that vectorizes gives bit for bit what encoding and decoding each element gives.
TEST(RoundActivationRowTest, EqualsEncodeAndDecode) {
  const uint32_t seed = 42;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> exponent(-12, 4);
  for (const Format format : {Format::kE4M3, Format::kE5M2, Format::kInt8}) {
    for (int trial = 0; trial < 300; ++trial) {
      std::vector<float> row(1 + random() % 700);
      for (float& x : row) x = normal(random) * std::exp2(exponent(random));
      float largest = 0;
      for (const float x : row) largest = std::max(largest, std::fabs(x));
      const float max = FormatMax(format);
      const std::vector<float> rounded = Rounded({format, false}, row);
      for (size_t i = 0; i < row.size(); ++i) {
        const uint8_t code = EncodeValue(format, row[i] * (max / largest));
        const float expected = DecodeValue(format, code) * (largest / max);
        ASSERT_EQ(std::bit_cast<uint32_t>(rounded[i]), std::bit_cast<uint32_t>(expected))
            << FormatName(format) << " of " << row[i] << " with largest " << largest;
      }
    }
  }
}

TEST(RoundActivationStepsTest, LeavesBFloat16NumbersWhoseProductsAreTheRoundedRow) {
  const uint32_t seed = 43;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (const ActivationSpec& spec : std::vector<ActivationSpec>{{Format::kE4M3, false},
                                                                {Format::kE5M2, false},
                                                                {Format::kInt8, false},
                                                                {Format::kInt8, true}}) {
    for (int trial = 0; trial < 100; ++trial) {
      std::vector<float> row(1 + random() % 700);
      for (float& x : row) x = normal(random);
      std::vector<float> steps = row;
      const float scale = RoundActivationSteps(spec, absl::MakeSpan(steps));
      EXPECT_EQ(scale, ComputeActivationScale(spec, row).scale);
      const std::vector<float> rounded = Rounded(spec, row);
      for (size_t i = 0; i < row.size(); ++i) {
        ASSERT_EQ(std::bit_cast<uint32_t>(steps[i]) & 0xffff, 0) << steps[i];
        // The tile kernels count on it: tile.h.
        ASSERT_TRUE(steps[i] == 0 || std::fabs(steps[i]) >= 0x1p-16F) << steps[i];
        ASSERT_EQ(steps[i] * scale, rounded[i]);
      }
    }
  }
}

TEST(RoundActivationRowTest, ByHand) {
  // The scale is 1: the largest magnitude is the format's.
  EXPECT_EQ(Rounded({Format::kE4M3, false}, {-448, 17, 19, 0.3f, 0}),
            (std::vector<float>{-448, 16, 20, 0.3125f, 0}));
  EXPECT_EQ(Rounded({Format::kInt8, false}, {127, 2.5f, 3.5f, -0.4f, -9.6f}),
            (std::vector<float>{127, 2, 4, 0, -10}));
  EXPECT_EQ(Rounded({Format::kE5M2, false}, {57344, -9, 11}), (std::vector<float>{57344, -8, 12}));
  // Range -55..200: the scale is 1 and the zero point 55.
  EXPECT_EQ(Rounded({Format::kInt8, true}, {-55, 200, 0, 0.6f, -1.4f}),
            (std::vector<float>{-55, 200, 0, 1, -1}));
  // The range includes 0: the scale is 510 / 255, the zero point 0.
  EXPECT_EQ(Rounded({Format::kInt8, true}, {510, 301, 13}), (std::vector<float>{510, 300, 12}));
}

TEST(RoundActivationRowTest, AsymmetricErrorIsAtMostAStep) {
  const uint32_t seed = 7;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<float> row(1 + random() % 100);
    const float shift = normal(random);
    for (float& x : row) x = normal(random) + shift;
    float low = 0;
    float high = 0;
    for (const float x : row) {
      low = std::min(low, x);
      high = std::max(high, x);
    }
    const std::vector<float> rounded = Rounded({Format::kInt8, true}, row);
    for (size_t i = 0; i < row.size(); ++i) {
      // Half a step of rounding and half a step of a clipped end; 1e-5 for f32.
      ASSERT_LE(std::fabs(rounded[i] - row[i]), (high - low) / 255 * (1 + 1e-5f));
    }
  }
}

TEST(RoundActivationRowTest, ZerosTinyNumbersAndNaNs) {
  for (const ActivationSpec spec :
       {ActivationSpec{Format::kE4M3, false}, ActivationSpec{Format::kE5M2, false},
        ActivationSpec{Format::kInt8, false}, ActivationSpec{Format::kInt8, true}}) {
    EXPECT_EQ(Rounded(spec, {0, 0, 0}), (std::vector<float>{0, 0, 0}));
    const float tiny = std::numeric_limits<float>::denorm_min();
    for (const float x : Rounded(spec, {tiny, -tiny, 1e-36f})) EXPECT_LT(std::fabs(x), 1e-30f);
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const float inf = std::numeric_limits<float>::infinity();
    for (const float bad : {nan, -nan, inf, -inf}) {
      for (const float x : Rounded(spec, {1, 0.5f, -1, 1, 1, 1, 1, 1, bad})) {
        EXPECT_TRUE(std::isnan(x)) << bad;
      }
    }
    EXPECT_TRUE(Rounded(spec, {}).empty());
  }
}

TEST(ActivationSpecTest, AcceptsOnlyWhatIsDefined) {
  EXPECT_TRUE((ActivationSpec{Format::kE4M3, false}).Validate().ok());
  EXPECT_TRUE((ActivationSpec{Format::kE5M2, false}).Validate().ok());
  EXPECT_TRUE((ActivationSpec{Format::kInt8, true}).Validate().ok());
  EXPECT_FALSE((ActivationSpec{Format::kE4M3, true}).Validate().ok());
  EXPECT_FALSE((ActivationSpec{Format::kE2M1, false}).Validate().ok());
  EXPECT_FALSE((ActivationSpec{Format::kInt4, false}).Validate().ok());
}

}  // namespace
}  // namespace nibble
