// Encoding and decoding against tables written by hand (4 bits) or by the definition in double
// arithmetic (8 bits).
#include "quant/formats/formats.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

namespace nibble {
namespace {

// The non-negative finite values in the order of their codes, from the definition.
std::vector<double> Values(Format format) {
  switch (format) {
    case Format::kE2M1:
      return {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    case Format::kE3M0:
      return {0, 0.25, 0.5, 1, 2, 4, 8, 16};
    case Format::kInt4:
      return {0, 1, 2, 3, 4, 5, 6, 7};
    default:
      break;
  }
  std::vector<double> values;
  if (format == Format::kInt8) {
    for (int i = 0; i <= 127; ++i) values.push_back(i);
    return values;
  }
  const bool e4m3 = format == Format::kE4M3;
  const int mantissa = e4m3 ? 3 : 2;
  const int bias = e4m3 ? 7 : 15;
  const int largest = e4m3 ? 0x7e : 0x7b;
  for (int code = 0; code <= largest; ++code) {
    const int exponent = code >> mantissa;
    const double fraction = static_cast<double>(code & ((1 << mantissa) - 1)) / (1 << mantissa);
    values.push_back(exponent == 0 ? std::pow(2.0, 1 - bias) * fraction
                                   : std::pow(2.0, exponent - bias) * (1 + fraction));
  }
  return values;
}

// Nearest value; between two, the even code, except that E3M0 goes up (but 0.125 to 0).
double RoundedByTable(Format format, double magnitude) {
  const std::vector<double> values = Values(format);
  for (size_t i = 0; i + 1 < values.size(); ++i) {
    const double middle = (values[i] + values[i + 1]) / 2;
    if (magnitude < middle) return values[i];
    if (magnitude == middle) {
      if (format == Format::kE3M0) return i == 0 ? 0 : values[i + 1];
      return i % 2 == 0 ? values[i] : values[i + 1];
    }
  }
  return values.back();
}

class EveryFormat : public testing::TestWithParam<Format> {
 protected:
  // All three functions, both signs, against the table.
  void Check(double magnitude) {
    const Format format = GetParam();
    const double expected = RoundedByTable(format, magnitude);
    for (const float x : {static_cast<float>(magnitude), static_cast<float>(-magnitude)}) {
      const double signed_value = x < 0 ? -expected : expected;
      const uint8_t code = EncodeValue(format, x);
      ASSERT_EQ(DecodeValue(format, code), signed_value) << FormatName(format) << " of " << x;
      ASSERT_EQ(std::bit_cast<uint32_t>(RoundToFormat(format, x)),
                std::bit_cast<uint32_t>(DecodeValue(format, code)))
          << FormatName(format) << " of " << x;
      ASSERT_EQ(code >> FormatBits(format), 0) << "bits above the format's";
    }
  }
};

TEST_P(EveryFormat, DecodesEveryCode) {
  const std::vector<double> values = Values(GetParam());
  const int sign = 1 << (FormatBits(GetParam()) - 1);
  for (size_t code = 0; code < values.size(); ++code) {
    const double value = values[code];
    const int negative =
        IsInteger(GetParam()) ? 2 * sign - static_cast<int>(code) : static_cast<int>(code) | sign;
    EXPECT_EQ(DecodeValue(GetParam(), static_cast<uint8_t>(code)), value);
    EXPECT_EQ(DecodeValue(GetParam(), static_cast<uint8_t>(negative)), -value);
    EXPECT_EQ(EncodeValue(GetParam(), static_cast<float>(value)), code);
    if (value != 0) {
      EXPECT_EQ(EncodeValue(GetParam(), static_cast<float>(-value)), negative);
    }
  }
  EXPECT_EQ(FormatMax(GetParam()), values.back());
}

TEST_P(EveryFormat, RoundsMidpointsAndTheirNeighbours) {
  const std::vector<double> values = Values(GetParam());
  for (size_t i = 0; i + 1 < values.size(); ++i) {
    const float middle = static_cast<float>((values[i] + values[i + 1]) / 2);  // exact
    Check(middle);
    Check(std::nextafter(middle, 0.0f));
    Check(std::nextafter(middle, 1e30f));
  }
}

TEST_P(EveryFormat, SaturatesAtTheLargestValue) {
  const float max = FormatMax(GetParam());
  for (const float x : {max, std::nextafter(max, 1e30f), 1.1f * max, 2 * max, 1e30f,
                        std::numeric_limits<float>::max()}) {
    EXPECT_EQ(RoundToFormat(GetParam(), x), max);
    EXPECT_EQ(DecodeValue(GetParam(), EncodeValue(GetParam(), -x)), -max);
  }
  EXPECT_EQ(RoundToFormat(GetParam(), std::numeric_limits<float>::infinity()), max);
}

TEST_P(EveryFormat, RoundsTinyNumbersToZero) {
  Check(0);
  Check(std::numeric_limits<float>::denorm_min());
  Check(std::numeric_limits<float>::min());
  Check(1e-20);
}

TEST_P(EveryFormat, RoundsRandomNumbers) {
  const uint32_t seed = 1234;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> exponent(-22, 18);
  for (int i = 0; i < 100000; ++i) Check(std::exp2(exponent(random)));
}

INSTANTIATE_TEST_SUITE_P(Formats, EveryFormat,
                         testing::Values(Format::kE2M1, Format::kE3M0, Format::kE4M3, Format::kE5M2,
                                         Format::kInt4, Format::kInt8),
                         [](const auto& info) { return std::string(FormatName(info.param)); });

TEST(FormatsTest, TiesByHand) {
  EXPECT_EQ(RoundToFormat(Format::kE2M1, 0.25f), 0);
  EXPECT_EQ(RoundToFormat(Format::kE2M1, 0.75f), 1);
  EXPECT_EQ(RoundToFormat(Format::kE2M1, 2.5f), 2);
  EXPECT_EQ(RoundToFormat(Format::kE2M1, 5.0f), 4);
  EXPECT_EQ(RoundToFormat(Format::kE3M0, 0.125f), 0);
  EXPECT_EQ(RoundToFormat(Format::kE3M0, 0.375f), 0.5f);
  EXPECT_EQ(RoundToFormat(Format::kE3M0, 12.0f), 16);
  EXPECT_EQ(RoundToFormat(Format::kInt4, 2.5f), 2);
  EXPECT_EQ(RoundToFormat(Format::kInt4, 3.5f), 4);
  EXPECT_EQ(RoundToFormat(Format::kE4M3, 0.0009765625f), 0);                // half the least, 2^-10
  EXPECT_EQ(RoundToFormat(Format::kE4M3, 3 * 0.0009765625f), 0.00390625f);  // 1.5 -> 2 leasts
}

TEST(FormatsTest, SpecialCodesDecodeToWhatTheyAre) {
  EXPECT_TRUE(std::isnan(DecodeValue(Format::kE4M3, 0x7f)));
  EXPECT_TRUE(std::isnan(DecodeValue(Format::kE4M3, 0xff)));
  EXPECT_EQ(DecodeValue(Format::kE5M2, 0x7c), std::numeric_limits<float>::infinity());
  EXPECT_EQ(DecodeValue(Format::kE5M2, 0xfc), -std::numeric_limits<float>::infinity());
  for (const int code : {0x7d, 0x7e, 0x7f, 0xfd, 0xfe, 0xff}) {
    EXPECT_TRUE(std::isnan(DecodeValue(Format::kE5M2, static_cast<uint8_t>(code)))) << code;
  }
}

TEST(FormatsTest, NamesParseBack) {
  for (const Format format :
       {Format::kE2M1, Format::kE3M0, Format::kE4M3, Format::kE5M2, Format::kInt4, Format::kInt8}) {
    const auto parsed = ParseFormat(FormatName(format));
    ASSERT_TRUE(parsed.ok());
    EXPECT_EQ(*parsed, format);
  }
  const absl::Status status = ParseFormat("fp4").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(status.message()).find("fp4"), std::string::npos);
}

TEST(FormatsTest, RefusesNumbersThatAreNotFinite) {
  std::vector<float> values = {0, 1, -2, 3e38f};
  EXPECT_TRUE(CheckFinite("w", values).ok());
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    values[2] = bad;
    const absl::Status status = CheckFinite("layers.3.q_proj", values);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(std::string(status.message()).find("layers.3.q_proj: value 2"), std::string::npos)
        << status;
  }
}

// value(code) * 2^(bias - k) in double arithmetic, for every code and every k that must be exact.
TEST(FoldExponentTest, IsExactForEveryCodeAndOffset) {
  struct Case {
    Format format;
    int bias;
    int largest_k;
  };
  for (const Case& c : {Case{Format::kE2M1, 6, 14}, Case{Format::kE3M0, 4, 11}}) {
    for (int k = 0; k <= c.largest_k; ++k) {
      for (int code = 0; code < 16; ++code) {
        const double exact =
            static_cast<double>(DecodeValue(c.format, static_cast<uint8_t>(code))) *
            std::pow(2.0, c.bias - k);
        const uint8_t folded = FoldExponent(c.format, static_cast<uint8_t>(code), k);
        EXPECT_EQ(DecodeValue(Format::kE4M3, folded), exact)
            << FormatName(c.format) << " code " << code << " k " << k;
        EXPECT_EQ(folded >> 7, code >> 3) << "sign of code " << code;
      }
    }
  }
}

// Up to k = 11 the fold is a subtraction in the exponent field: k * 8 from the byte of k = 0.
TEST(FoldExponentTest, IsASubtractionWithinTheNormalNumbers) {
  for (int k = 0; k <= kMaxExponentOffset; ++k) {
    for (int code = 1; code < 8; ++code) {
      const uint8_t base = FoldExponent(Format::kE2M1, static_cast<uint8_t>(code), 0);
      EXPECT_EQ(FoldExponent(Format::kE2M1, static_cast<uint8_t>(code), k), base - 8 * k);
    }
  }
}

}  // namespace
}  // namespace nibble
