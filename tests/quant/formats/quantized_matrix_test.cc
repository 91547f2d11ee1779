#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "quant/formats/formats.h"

namespace nibble {
namespace {

WeightSpec Spec(Format format, ScaleConstraint constraint, int group_size = 16) {
  WeightSpec spec;
  spec.format = format;
  spec.constraint = constraint;
  spec.group_size = group_size;
  return spec;
}

// A matrix of random rows, and by row the values that its codes and scales stand for.
struct Sample {
  QuantizedMatrix matrix;
  std::vector<std::vector<float>> values;
};

Sample MakeSample(const WeightSpec& spec, int64_t rows, int64_t cols, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Sample sample;
  sample.matrix = MakeQuantizedMatrix(spec, rows, cols);
  const int64_t width = GroupWidth(cols, spec.group_size);
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<float> weights(cols);
    for (float& w : weights) w = normal(random);
    const RowScales scales = ComputeRowScales(spec, weights);
    std::vector<uint8_t> codes(cols);
    std::vector<float> values(cols);
    for (int64_t c = 0; c < cols; ++c) {
      const float scale = scales.scale[c / width];
      const uint8_t zero = spec.asymmetric ? scales.zero[c / width] : 0;
      codes[c] = QuantizeWeight(spec, weights[c], scale, zero);
      values[c] = DequantizeWeight(spec, codes[c], scale, zero);
    }
    StoreRow(sample.matrix, row, codes, scales);
    sample.values.push_back(values);
  }
  return sample;
}

TEST(PackingTest, LowNibbleFirstAndOddCounts) {
  const std::vector<uint8_t> codes = {0x1, 0x2, 0xf};
  EXPECT_EQ(PackCodes(Format::kE2M1, codes), (std::vector<uint8_t>{0x21, 0x0f}));
  EXPECT_EQ(UnpackCodes(Format::kE2M1, std::vector<uint8_t>{0x21, 0x0f}, 3), codes);
  EXPECT_EQ(PackCodes(Format::kE4M3, codes), codes);
  EXPECT_TRUE(PackCodes(Format::kInt4, {}).empty());
}

TEST(PackingTest, RoundTripsEveryLength) {
  std::mt19937 random(3);
  for (int64_t count = 0; count < 70; ++count) {
    for (const Format format : {Format::kE2M1, Format::kInt8}) {
      std::vector<uint8_t> codes(count);
      for (uint8_t& code : codes) {
        code = static_cast<uint8_t>(random() & ((1 << FormatBits(format)) - 1));
      }
      const std::vector<uint8_t> packed = PackCodes(format, codes);
      EXPECT_EQ(static_cast<int64_t>(packed.size()), (count * FormatBits(format) + 7) / 8);
      EXPECT_EQ(UnpackCodes(format, packed, count), codes);
    }
  }
}

TEST(GroupsTest, CountAndWidth) {
  EXPECT_EQ(GroupCount(576, 64), 9);
  EXPECT_EQ(GroupCount(577, 64), 10);
  EXPECT_EQ(GroupCount(40, 256), 1);
  EXPECT_EQ(GroupCount(3200, 256), 13);  // OpenLLaMA-3b: the last ones have 128
  EXPECT_EQ(GroupCount(8640, 256), 34);  // and 192 columns
  EXPECT_EQ(GroupCount(576, kWholeRow), 1);
  EXPECT_EQ(GroupWidth(576, kWholeRow), 576);
  EXPECT_EQ(GroupWidth(576, 64), 64);
}

// Stored and read back, every value is exactly code times scale; odd columns, short last group.
TEST(QuantizedMatrixTest, DequantizesWhatWasStored) {
  const uint32_t seed = 99;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  for (int f = 0; f < 6; ++f) {
    for (const auto constraint :
         {ScaleConstraint::kNone, ScaleConstraint::kM1, ScaleConstraint::kM2}) {
      for (const int group : {16, 32, kWholeRow}) {
        for (const bool asymmetric : {false, true}) {
          WeightSpec spec = Spec(static_cast<Format>(f), constraint, group);
          spec.asymmetric = asymmetric;
          if (!spec.Validate().ok()) continue;
          for (const int64_t cols : {1, 37, 64}) {
            const Sample sample = MakeSample(spec, 5, cols, seed);
            const absl::Status status = sample.matrix.Validate("w");
            ASSERT_TRUE(status.ok()) << status;
            std::vector<float> row(cols);
            for (int64_t r = 0; r < 5; ++r) {
              sample.matrix.DequantizeRow(r, absl::MakeSpan(row));
              ASSERT_EQ(row, sample.values[r]) << FormatName(spec.format) << " group " << group;
            }
          }
        }
      }
    }
  }
}

TEST(QuantizedMatrixTest, OpenLlamasWidthsEndInAShortGroup) {
  for (const auto& [cols, last] : {std::pair{3200, 128}, std::pair{8640, 192}}) {
    const WeightSpec spec = Spec(Format::kE2M1, ScaleConstraint::kM2, 256);
    const Sample sample = MakeSample(spec, 2, cols, 7);
    const absl::Status status = sample.matrix.Validate("w");
    ASSERT_TRUE(status.ok()) << status;
    std::vector<float> row(cols);
    sample.matrix.DequantizeRow(1, absl::MakeSpan(row));
    EXPECT_EQ(row, sample.values[1]);
    // One more in the last group's k halves that group's values and no other.
    const int64_t group = GroupCount(cols, 256) - 1;
    QuantizedMatrix changed = sample.matrix;
    changed.k[(GroupCount(cols, 256) + 1) / 2 + group / 2] += group % 2 == 0 ? 0x01 : 0x10;
    std::vector<float> halved(cols);
    changed.DequantizeRow(1, absl::MakeSpan(halved));
    for (int c = 0; c < cols; ++c) {
      ASSERT_EQ(halved[c], c < cols - last ? row[c] : row[c] / 2) << "column " << c;
    }
  }
}

TEST(QuantizedMatrixTest, M2ScaleIsRowScaleTimesAPowerOfTwo) {
  QuantizedMatrix matrix = MakeQuantizedMatrix(Spec(Format::kE2M1, ScaleConstraint::kM2), 1, 40);
  matrix.row_scale = {0.3f};
  matrix.k = {0x2b, 0x05};  // groups 0, 1, 2: 11, 2, 5
  EXPECT_EQ(matrix.GroupScaleAt(0, 0), 0.3f / 2048);
  EXPECT_EQ(matrix.GroupScaleAt(0, 1), 0.3f / 4);
  EXPECT_EQ(matrix.GroupScaleAt(0, 2), 0.3f / 32);
}

TEST(QuantizedMatrixTest, BitsPerWeightCountsScalesAndZeros) {
  // 4 bits, and per 64 columns 32 of scale; M2: per row 32, and 4 a group.
  EXPECT_DOUBLE_EQ(
      MakeQuantizedMatrix(Spec(Format::kE2M1, ScaleConstraint::kNone, 64), 8, 512).BitsPerWeight(),
      4.5);
  EXPECT_DOUBLE_EQ(
      MakeQuantizedMatrix(Spec(Format::kE2M1, ScaleConstraint::kM2, 64), 8, 512).BitsPerWeight(),
      4 + 4 / 64.0 + 32 / 512.0);
  WeightSpec asymmetric = Spec(Format::kInt8, ScaleConstraint::kNone, 64);
  asymmetric.asymmetric = true;
  EXPECT_DOUBLE_EQ(MakeQuantizedMatrix(asymmetric, 8, 512).BitsPerWeight(), 8 + 40 / 64.0);
}

class ValidateTest : public testing::Test {
 protected:
  static void ExpectRefused(const QuantizedMatrix& matrix, const std::string& expected) {
    const absl::Status status = matrix.Validate("layers.7.down_proj");
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    const std::string message(status.message());
    EXPECT_NE(message.find("layers.7.down_proj"), std::string::npos) << message;
    EXPECT_NE(message.find(expected), std::string::npos) << message;
  }
};

TEST_F(ValidateTest, RefusesOffsetsAbove11) {
  Sample sample = MakeSample(Spec(Format::kE2M1, ScaleConstraint::kM2), 3, 40, 1);
  sample.matrix.k[2] = static_cast<uint8_t>((sample.matrix.k[2] & 0x0f) | 0xc0);
  ExpectRefused(sample.matrix, "k of row 1, group 1 is 12");
}

TEST_F(ValidateTest, RefusesScalesThatAreNotFiniteAndPositive) {
  for (const float bad : {0.0f, -1.0f, std::numeric_limits<float>::quiet_NaN(),
                          std::numeric_limits<float>::infinity()}) {
    Sample none = MakeSample(Spec(Format::kE2M1, ScaleConstraint::kNone), 3, 40, 1);
    none.matrix.scale[4] = bad;
    ExpectRefused(none.matrix, "scale 4 is ");
    Sample m2 = MakeSample(Spec(Format::kE2M1, ScaleConstraint::kM2), 3, 40, 1);
    m2.matrix.row_scale[2] = bad;
    ExpectRefused(m2.matrix, "row_scale 2 is ");
  }
}

TEST_F(ValidateTest, RefusesExponentsFarBelowTheRowsLargest) {
  Sample sample = MakeSample(Spec(Format::kE2M1, ScaleConstraint::kM1), 2, 40, 1);
  sample.matrix.exponent = {0, -11, 0, 0, 5, -7};
  ExpectRefused(sample.matrix, "exponent -7 in row 1");
  sample.matrix.exponent = {-127, -127, -127, 0, 0, 0};
  ExpectRefused(sample.matrix, "exponent -127 in row 0");
}

TEST_F(ValidateTest, RefusesCodesWithoutAValue) {
  for (const auto& [format, code] :
       std::vector<std::pair<Format, uint8_t>>{{Format::kE4M3, uint8_t{0x7f}},
                                               {Format::kE4M3, uint8_t{0xff}},
                                               {Format::kE5M2, uint8_t{0x7c}},
                                               {Format::kE5M2, uint8_t{0xfe}},
                                               {Format::kInt8, uint8_t{0x80}},
                                               {Format::kInt4, uint8_t{0x80}},
                                               {Format::kInt4, uint8_t{0x08}}}) {
    Sample sample = MakeSample(Spec(format, ScaleConstraint::kM2), 2, 40, 1);
    sample.matrix.codes[9] = code;
    ExpectRefused(sample.matrix, "byte 9 of the codes is 0x");
  }
}

TEST_F(ValidateTest, RefusesWrongSizes) {
  const Sample m2 = MakeSample(Spec(Format::kE2M1, ScaleConstraint::kM2), 3, 40, 1);
  QuantizedMatrix matrix = m2.matrix;
  matrix.codes.pop_back();
  ExpectRefused(matrix, "codes holds 59 elements; expected 60");
  matrix = m2.matrix;
  matrix.k.push_back(0);
  ExpectRefused(matrix, "k holds 7 elements; expected 6");
  matrix = m2.matrix;
  matrix.row_scale.clear();
  ExpectRefused(matrix, "row_scale holds 0 elements; expected 3");
  matrix = m2.matrix;
  matrix.zero.resize(9);
  ExpectRefused(matrix, "zero holds 9 elements; expected 0");
  matrix = m2.matrix;
  matrix.scale.resize(9);
  ExpectRefused(matrix, "scale holds 9 elements; expected 0");
  matrix = m2.matrix;
  matrix.rows = 0;
  ExpectRefused(matrix, "shape is [0, 40]");
  matrix = m2.matrix;
  matrix.spec.group_size = 0;
  ExpectRefused(matrix, "group_size: found 0");
}

}  // namespace
}  // namespace nibble
