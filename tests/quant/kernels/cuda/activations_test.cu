// Runs on a GPU only (ctest --preset cuda). The oracle is the format library on the CPU.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "quant/formats/formats.h"
#include "quant/kernels/cuda/activations.h"
#include "tests/quant/kernels/cuda/device_array.h"
#include "tests/quant/kernels/cuda/rows.h"

namespace nibble {
namespace {

struct Quantized {
  std::vector<uint8_t> codes;
  std::vector<float> scales;
};

Quantized Run(const Bf16s& x, int64_t tokens, int64_t width) {
  DeviceArray<__nv_bfloat16> device_x(x);
  DeviceArray<uint8_t> codes(x.size());
  DeviceArray<float> scales(tokens);
  EXPECT_EQ(
      QuantizeActivationsE4M3(device_x.data(), tokens, width, codes.data(), scales.data(), nullptr),
      absl::OkStatus());
  return {codes.Read(), scales.Read()};
}

// Every value of the row is bit for bit what the CPU makes of it.
void ExpectRowsAsOnCpu(const std::vector<float>& values, int64_t tokens, int64_t width) {
  Bf16s x;
  for (const float value : values) x.push_back(__float2bfloat16(value));
  const Quantized found = Run(x, tokens, width);
  for (int64_t token = 0; token < tokens; ++token) {
    std::vector<float> row;
    for (int64_t i = 0; i < width; ++i) row.push_back(__bfloat162float(x[token * width + i]));
    RoundActivationRow({}, absl::MakeSpan(row));
    for (int64_t i = 0; i < width; ++i) {
      const float value =
          DecodeValue(Format::kE4M3, found.codes[token * width + i]) * found.scales[token];
      if (std::isnan(row[i])) {
        ASSERT_TRUE(std::isnan(value)) << "token " << token << " column " << i;
      } else {
        ASSERT_EQ(value, row[i]) << "token " << token << " column " << i;
      }
    }
  }
}

TEST(QuantizeActivationsE4M3, AgreesWithTheCpuBitForBit) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (const int64_t width : {8, 576, 2048, 4104, 8640}) {
    constexpr int64_t kTokens = 37;
    std::vector<float> values;
    for (int64_t token = 0; token < kTokens; ++token) {
      // Down to where the row's range is taken as 1e-30.
      const float size = std::exp2(static_cast<float>(random() % 150) - 120.f);
      for (int64_t i = 0; i < width; ++i) values.push_back(normal(random) * size);
    }
    ExpectRowsAsOnCpu(values, kTokens, width);
  }
}

TEST(QuantizeActivationsE4M3, ZerosNansAndInfinities) {
  constexpr int64_t kWidth = 16;
  std::vector<float> values(5 * kWidth, 0.f);
  for (int64_t i = kWidth; i < 5 * kWidth; ++i) values[i] = static_cast<float>(i) - 40.f;
  values[kWidth + 3] = std::numeric_limits<float>::quiet_NaN();
  values[2 * kWidth + 5] = std::numeric_limits<float>::infinity();
  values[3 * kWidth + 15] = -std::numeric_limits<float>::infinity();
  ExpectRowsAsOnCpu(values, 5, kWidth);
}

double Silu(double x) { return x / (1 + std::exp(-x)); }

// __expf is within 2 + 1.16 |x| units in the last place of e^x (|x| < 20 here), __fdividef within 2
// of the quotient; a few roundings more.
constexpr double kSiluError = 32 * 0x1p-23;

TEST(SiluMul, AgreesWithDoublePrecision) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  for (const int64_t width : {8, 1536, 11008, 28672}) {
    SCOPED_TRACE(testing::Message() << "width " << width);
    constexpr int64_t kTokens = 5;
    const Bf16s gate_up = RandomRows(random, kTokens, 2 * width, 1);
    DeviceArray<__nv_bfloat16> device(gate_up);
    DeviceArray<uint8_t> device_codes(kTokens * width);
    DeviceArray<float> device_scales(kTokens);
    DeviceArray<__nv_bfloat16> device_plain(kTokens * width);
    ASSERT_EQ(SiluMulQuantize(device.data(), kTokens, width, device_codes.data(),
                              device_scales.data(), nullptr),
              absl::OkStatus());
    ASSERT_EQ(SiluMul(device.data(), kTokens, width, device_plain.data(), nullptr),
              absl::OkStatus());
    const std::vector<uint8_t> codes = device_codes.Read();
    const std::vector<float> scales = device_scales.Read();
    const Bf16s plain = device_plain.Read();
    for (int64_t token = 0; token < kTokens; ++token) {
      std::vector<double> expected;
      for (int64_t i = 0; i < width; ++i) {
        const __nv_bfloat16* row = &gate_up[token * 2 * width];
        expected.push_back(Silu(double(row[i])) * double(row[width + i]));
        ASSERT_NEAR(double(plain[token * width + i]), expected.back(),
                    (0x1p-8 + kSiluError) * std::fabs(expected.back()) + 1e-30)
            << "token " << token << " column " << i;
      }
      ExpectNearestE4M3(&codes[token * width], scales[token], expected, kSiluError);
    }
  }
}

TEST(Relu, KeepsPositivesAndNans) {
  std::mt19937 random(3);
  Bf16s x = RandomRows(random, 3, 576, 1);
  x[576 + 9] = __float2bfloat16(std::numeric_limits<float>::quiet_NaN());
  DeviceArray<__nv_bfloat16> device(x);
  DeviceArray<uint8_t> device_codes(x.size());
  DeviceArray<float> device_scales(3);
  ASSERT_EQ(ReluQuantize(device.data(), 3, 576, device_codes.data(), device_scales.data(), nullptr),
            absl::OkStatus());
  ASSERT_EQ(Relu(device.data(), 3, 576, device.data(), nullptr), absl::OkStatus());
  const Bf16s plain = device.Read();
  for (size_t i = 0; i < x.size(); ++i) {
    if (i == 576 + 9) {
      EXPECT_TRUE(std::isnan(float(plain[i])));
    } else {
      ASSERT_EQ(float(plain[i]), std::max(float(x[i]), 0.f));
    }
  }
  const std::vector<uint8_t> codes = device_codes.Read();
  const std::vector<float> scales = device_scales.Read();
  EXPECT_TRUE(std::isnan(scales[1]));
  for (const int64_t token : {0, 2}) {
    std::vector<double> expected;
    for (int64_t i = 0; i < 576; ++i) expected.push_back(double(plain[token * 576 + i]));
    ExpectNearestE4M3(&codes[token * 576], scales[token], expected, 4 * 0x1p-23);
  }
}

TEST(QuantizeActivationsE4M3, RefusesWidthsAndPointersItCantLoad) {
  DeviceArray<__nv_bfloat16> x(16);
  DeviceArray<uint8_t> codes(16);
  DeviceArray<float> scale(1);
  EXPECT_EQ(QuantizeActivationsE4M3(x.data(), 1, 12, codes.data(), scale.data(), nullptr).message(),
            "activations: found 1 rows of 12, expected rows whose width is a positive multiple of "
            "8 up to "
            "32768");
  EXPECT_FALSE(
      QuantizeActivationsE4M3(x.data() + 1, 1, 8, codes.data(), scale.data(), nullptr).ok());
}

}  // namespace
}  // namespace nibble
