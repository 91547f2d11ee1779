// Runs on a GPU only. The oracle is the format library on the CPU.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "quant/kernels/cuda/rounding.h"
#include "tests/quant/kernels/cuda/device_array.h"
#include "tests/quant/kernels/cuda/rows.h"

namespace nibble {
namespace {

constexpr ActivationSpec kSpecs[] = {
    {Format::kE4M3, false}, {Format::kE5M2, false}, {Format::kInt8, false}, {Format::kInt8, true}};

bool Same(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b) ||
         (std::isnan(a) && std::isnan(b));
}

std::vector<float> RoundOnCpu(const ActivationSpec& spec, std::vector<float> x, int64_t width) {
  for (size_t row = 0; row < x.size() / width; ++row) {
    RoundActivationRow(spec, absl::MakeSpan(x).subspan(row * width, width));
  }
  return x;
}

// f32 and, rounded to them first, bf16.
void ExpectAsOnCpu(const std::vector<float>& x, int64_t width) {
  const auto tokens = static_cast<int64_t>(x.size()) / width;
  Bf16s halves;
  for (const float value : x) halves.push_back(__float2bfloat16(value));
  const std::vector<double> wide = Widen(halves);
  for (const ActivationSpec& spec : kSpecs) {
    SCOPED_TRACE(testing::Message()
                 << FormatName(spec.format) << (spec.asymmetric ? " asymmetric" : ""));
    DeviceArray<float> device(x);
    ASSERT_EQ(RoundActivationRows(spec, device.data(), tokens, width, device.data(), nullptr),
              absl::OkStatus());
    const std::vector<float> found = device.Read();
    const std::vector<float> expected = RoundOnCpu(spec, x, width);
    DeviceArray<__nv_bfloat16> device_halves(halves);
    DeviceArray<__nv_bfloat16> device_out(halves.size());
    ASSERT_EQ(
        RoundActivationRows(spec, device_halves.data(), tokens, width, device_out.data(), nullptr),
        absl::OkStatus());
    const Bf16s found_halves = device_out.Read();
    const std::vector<float> expected_halves =
        RoundOnCpu(spec, std::vector<float>(wide.begin(), wide.end()), width);
    for (size_t i = 0; i < x.size(); ++i) {
      ASSERT_TRUE(Same(found[i], expected[i])) << "f32 element " << i << " of rows of " << width
                                               << ": " << found[i] << ", expected " << expected[i];
      const float rounded = __bfloat162float(__float2bfloat16(expected_halves[i]));
      ASSERT_TRUE(Same(float(found_halves[i]), rounded))
          << "bf16 element " << i << " of rows of " << width << ": " << float(found_halves[i])
          << ", expected " << rounded;
    }
  }
}

TEST(RoundActivationRows, AgreesWithTheCpuBitForBit) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (const int64_t width : {1, 7, 576, 4096, 11008}) {
    std::vector<float> x;
    for (int row = 0; row < 19; ++row) {
      // Down to where the row's range is taken as 1e-30.
      const float size = std::exp2(static_cast<float>(random() % 150) - 120.f);
      const float shift = row % 3 == 0 ? 5.f : 0.f;  // all positive, mostly: zero point 0
      for (int64_t i = 0; i < width; ++i) x.push_back((normal(random) + shift) * size);
    }
    ExpectAsOnCpu(x, width);
  }
}

TEST(RoundActivationRows, ZerosNansAndInfinities) {
  constexpr int64_t kWidth = 300;
  std::vector<float> x(5 * kWidth, 0.f);
  for (int64_t i = kWidth; i < 5 * kWidth; ++i) x[i] = static_cast<float>(i) - 700.f;
  x[kWidth + 3] = std::numeric_limits<float>::quiet_NaN();
  x[2 * kWidth + 290] = std::numeric_limits<float>::infinity();
  x[3 * kWidth + 299] = -std::numeric_limits<float>::infinity();
  ExpectAsOnCpu(x, kWidth);
}

TEST(RoundActivationRows, RefusesWhatItCantRound) {
  DeviceArray<float> x(16);
  EXPECT_FALSE(
      RoundActivationRows({Format::kE2M1, false}, x.data(), 1, 16, x.data(), nullptr).ok());
  EXPECT_FALSE(RoundActivationRows({}, x.data(), 1, 0, x.data(), nullptr).ok());
  const float* none = nullptr;
  EXPECT_FALSE(RoundActivationRows({}, none, 1, 16, x.data(), nullptr).ok());
  EXPECT_EQ(RoundActivationRows({}, none, 0, 16, x.data(), nullptr), absl::OkStatus());
}

}  // namespace
}  // namespace nibble
