// Runs on a GPU only. The oracle is the format library on the CPU.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "quant/base/strings.h"
#include "quant/formats/formats.h"
#include "quant/kernels/cuda/dequantize.h"
#include "tests/quant/kernels/cuda/device_array.h"

namespace nibble {
namespace {

struct Case {
  WeightSpec spec;
  int64_t rows;
  int64_t cols;
};

std::string Describe(const Case& c) {
  return StrCat(FormatName(c.spec.format), c.spec.asymmetric ? " asymmetric " : " ",
                ScaleConstraintName(c.spec.constraint), " group ", c.spec.group_size, " [", c.rows,
                ", ", c.cols, "]");
}

QuantizedMatrix RandomMatrix(const Case& c, std::mt19937& random) {
  QuantizedMatrix matrix = MakeQuantizedMatrix(c.spec, c.rows, c.cols);
  std::normal_distribution<float> normal;
  for (int64_t row = 0; row < c.rows; ++row) {
    std::vector<float> weights(c.cols);
    const float size = std::exp2(static_cast<float>(random() % 20) - 10.f);
    for (float& w : weights) w = normal(random) * size;
    const RowScales scales = ComputeRowScales(c.spec, weights);
    const int64_t width = GroupWidth(c.cols, c.spec.group_size);
    std::vector<uint8_t> codes;
    for (int64_t col = 0; col < c.cols; ++col) {
      const int64_t group = col / width;
      codes.push_back(QuantizeWeight(c.spec, weights[col], scales.scale[group],
                                     c.spec.asymmetric ? scales.zero[group] : uint8_t{0}));
    }
    StoreRow(matrix, row, codes, scales);
  }
  return matrix;
}

// The device copies of a matrix's arrays.
struct OnDevice {
  explicit OnDevice(const QuantizedMatrix& m)
      : codes(m.codes),
        scale(m.scale),
        exponent(m.exponent),
        row_scale(m.row_scale),
        k(m.k),
        zero(m.zero),
        view{m.spec,
             m.rows,
             m.cols,
             codes.data(),
             m.scale.empty() ? nullptr : scale.data(),
             m.exponent.empty() ? nullptr : exponent.data(),
             m.row_scale.empty() ? nullptr : row_scale.data(),
             m.k.empty() ? nullptr : k.data(),
             m.zero.empty() ? nullptr : zero.data()} {}
  DeviceArray<uint8_t> codes;
  DeviceArray<float> scale;
  DeviceArray<int8_t> exponent;
  DeviceArray<float> row_scale;
  DeviceArray<uint8_t> k;
  DeviceArray<uint8_t> zero;
  DeviceQuantizedMatrix view;
};

void ExpectAsOnCpu(const Case& c, std::mt19937& random) {
  SCOPED_TRACE(Describe(c));
  const QuantizedMatrix matrix = RandomMatrix(c, random);
  ASSERT_TRUE(matrix.Validate("matrix").ok());
  OnDevice device(matrix);
  DeviceArray<float> wide(c.rows * c.cols);
  DeviceArray<__nv_bfloat16> narrow(c.rows * c.cols);
  ASSERT_TRUE(Dequantize(device.view, wide.data(), nullptr).ok());
  ASSERT_TRUE(Dequantize(device.view, narrow.data(), nullptr).ok());
  const std::vector<float> found = wide.Read();
  const std::vector<__nv_bfloat16> found_bf16 = narrow.Read();
  std::vector<float> expected(c.cols);
  for (int64_t row = 0; row < c.rows; ++row) {
    matrix.DequantizeRow(row, absl::MakeSpan(expected));
    for (int64_t col = 0; col < c.cols; ++col) {
      const int64_t i = row * c.cols + col;
      ASSERT_EQ(found[i], expected[col]) << "row " << row << " column " << col;
      ASSERT_EQ(__bfloat162float(found_bf16[i]), __bfloat162float(__float2bfloat16(expected[col])))
          << "row " << row << " column " << col;
    }
  }
}

std::vector<WeightSpec> EverySpec() {
  std::vector<WeightSpec> specs;
  for (const Format format :
       {Format::kE2M1, Format::kE3M0, Format::kE4M3, Format::kE5M2, Format::kInt4, Format::kInt8}) {
    for (const ScaleConstraint constraint :
         {ScaleConstraint::kNone, ScaleConstraint::kM1, ScaleConstraint::kM2}) {
      for (const bool asymmetric : {false, true}) {
        for (const int group_size : {16, 256, kWholeRow}) {
          const WeightSpec spec{format, asymmetric, group_size, constraint};
          if (spec.Validate().ok()) specs.push_back(spec);
        }
      }
    }
  }
  return specs;
}

TEST(Dequantize, EveryFormatAgreesWithTheCpuBitForBit) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  const std::vector<WeightSpec> specs = EverySpec();
  ASSERT_EQ(specs.size(), 60u);  // 6 formats x 3 constraints x 3 groups, + 2 asymmetric x 3 groups
  for (const WeightSpec& spec : specs) {
    for (const int64_t cols : {1, 7, 576, 1001}) ExpectAsOnCpu({spec, 5, cols}, random);
  }
}

TEST(Dequantize, RefusesWhatItCantRead) {
  DeviceArray<float> values(16);
  DeviceArray<uint8_t> codes(16);
  DeviceQuantizedMatrix matrix{.spec = {}, .rows = 1, .cols = 16, .codes = codes.data()};
  EXPECT_EQ(Dequantize(matrix, values.data(), nullptr).message(),
            "k: found a null pointer, expected a device address");
  matrix.cols = 0;
  EXPECT_EQ(Dequantize(matrix, values.data(), nullptr).message(),
            "dequantize: found shape [1, 0], expected positive sizes");
  matrix.cols = 16;
  EXPECT_FALSE(Dequantize(matrix, values.data() + 1, nullptr).ok());
  matrix.spec.group_size = 17;
  EXPECT_FALSE(Dequantize(matrix, values.data(), nullptr).ok());
}

}  // namespace
}  // namespace nibble
