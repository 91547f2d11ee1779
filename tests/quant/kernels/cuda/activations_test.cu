// Runs on a GPU only (ctest --preset cuda). The oracle is the format library on the CPU.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "quant/formats/formats.h"
#include "quant/kernels/cuda/activations.h"

namespace nibble {
namespace {

struct Quantized {
  std::vector<uint8_t> codes;
  std::vector<float> scales;
};

void Expect(cudaError_t error) { ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error); }

Quantized Run(const std::vector<__nv_bfloat16>& x, int64_t tokens, int64_t width) {
  Quantized out{std::vector<uint8_t>(x.size()), std::vector<float>(tokens)};
  __nv_bfloat16* device_x = nullptr;
  uint8_t* codes = nullptr;
  float* scales = nullptr;
  Expect(cudaMalloc(&device_x, x.size() * sizeof(x[0])));
  Expect(cudaMalloc(&codes, x.size()));
  Expect(cudaMalloc(&scales, tokens * sizeof(float)));
  Expect(cudaMemcpy(device_x, x.data(), x.size() * sizeof(x[0]), cudaMemcpyHostToDevice));
  const absl::Status status =
      QuantizeActivationsE4M3(device_x, tokens, width, codes, scales, nullptr);
  EXPECT_TRUE(status.ok()) << status;
  Expect(cudaMemcpy(out.codes.data(), codes, out.codes.size(), cudaMemcpyDeviceToHost));
  Expect(cudaMemcpy(out.scales.data(), scales, tokens * sizeof(float), cudaMemcpyDeviceToHost));
  cudaFree(device_x);
  cudaFree(codes);
  cudaFree(scales);
  return out;
}

// Every value of the row is bit for bit what the CPU makes of it.
void ExpectRowsAsOnCpu(const std::vector<float>& values, int64_t tokens, int64_t width) {
  std::vector<__nv_bfloat16> x;
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
      const float size = std::exp2(static_cast<float>(random() % 60) - 30.f);
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

TEST(QuantizeActivationsE4M3, RefusesWidthsAndPointersItCantLoad) {
  alignas(16) static __nv_bfloat16 x[16];
  alignas(16) static uint8_t codes[16];
  float scale = 0;
  EXPECT_EQ(QuantizeActivationsE4M3(x, 1, 12, codes, &scale, nullptr).message(),
            "activations: found 1 rows of 12, expected rows whose width is a positive multiple of "
            "8");
  EXPECT_FALSE(QuantizeActivationsE4M3(x + 1, 1, 8, codes, &scale, nullptr).ok());
}

}  // namespace
}  // namespace nibble
