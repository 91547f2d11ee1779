// Runs on a GPU only. The oracle is double precision on the host.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "quant/kernels/cuda/norm.h"
#include "tests/quant/kernels/cuda/device_array.h"
#include "tests/quant/kernels/cuda/rows.h"

namespace nibble {
namespace {

constexpr float kEps = 1e-5f;
// Sums of up to 2^15 squares in trees of at most 80 f32 additions in a row, halved by the root, and
// a few roundings more.
constexpr double kF32Error = 90 * 0x1p-24;

struct Inputs {
  int64_t tokens;
  int64_t width;
  Bf16s hidden;
  Bf16s delta;
  Bf16s gain;
  Bf16s bias;  // empty: RMSNorm
};

Inputs RandomInputs(std::mt19937& random, int64_t tokens, int64_t width, bool layer_norm) {
  return {tokens,
          width,
          RandomRows(random, tokens, width),
          RandomRows(random, tokens, width),
          RandomRows(random, 1, width, 0),
          layer_norm ? RandomRows(random, 1, width, 0) : Bf16s{}};
}

// bf16(hidden + delta).
Bf16s Sum(const Inputs& in) {
  Bf16s sum;
  for (size_t i = 0; i < in.hidden.size(); ++i) {
    sum.push_back(__float2bfloat16(__bfloat162float(in.hidden[i]) + __bfloat162float(in.delta[i])));
  }
  return sum;
}

// The normalized rows, in double.
std::vector<std::vector<double>> Expected(const Inputs& in) {
  const std::vector<double> x = Widen(Sum(in));
  std::vector<std::vector<double>> rows;
  for (int64_t token = 0; token < in.tokens; ++token) {
    const auto at = [&](int64_t i) { return x[token * in.width + i]; };
    double mean = 0;
    for (int64_t i = 0; i < in.width && !in.bias.empty(); ++i) mean += at(i) / in.width;
    double square = 0;
    for (int64_t i = 0; i < in.width; ++i) square += (at(i) - mean) * (at(i) - mean) / in.width;
    std::vector<double> row;
    for (int64_t i = 0; i < in.width; ++i) {
      row.push_back((at(i) - mean) / std::sqrt(square + double{kEps}) * double(in.gain[i]) +
                    (in.bias.empty() ? 0 : double(in.bias[i])));
    }
    rows.push_back(row);
  }
  return rows;
}

struct Outputs {
  Bf16s hidden;
  std::vector<uint8_t> codes;
  std::vector<float> scales;
  Bf16s plain;
};

Outputs RunNorm(const Inputs& in) {
  DeviceArray<__nv_bfloat16> hidden(in.hidden);
  DeviceArray<__nv_bfloat16> again(in.hidden);
  DeviceArray<__nv_bfloat16> delta(in.delta);
  DeviceArray<__nv_bfloat16> gain(in.gain);
  DeviceArray<__nv_bfloat16> bias(in.bias);
  DeviceArray<uint8_t> codes(in.hidden.size());
  DeviceArray<float> scales(in.tokens);
  DeviceArray<__nv_bfloat16> plain(in.hidden.size());
  const DeviceNorm norm = {gain.data(), in.bias.empty() ? nullptr : bias.data(), kEps};
  EXPECT_EQ(AddNormQuantize(norm, hidden.data(), delta.data(), in.tokens, in.width, codes.data(),
                            scales.data(), nullptr),
            absl::OkStatus());
  EXPECT_EQ(AddNorm(norm, again.data(), delta.data(), in.tokens, in.width, plain.data(), nullptr),
            absl::OkStatus());
  return {hidden.Read(), codes.Read(), scales.Read(), plain.Read()};
}

void ExpectSameBits(const Bf16s& a, const Bf16s& b) {
  ASSERT_EQ(a.size(), b.size());
  ASSERT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])), 0);
}

class NormTest : public testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Kinds, NormTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "LayerNorm" : "RmsNorm"; });

TEST_P(NormTest, AgreesWithDoublePrecision) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  for (const int64_t width : {8, 576, 4096, 4104, 8200, 32768}) {
    SCOPED_TRACE(testing::Message() << "width " << width);
    const Inputs in = RandomInputs(random, 5, width, GetParam());
    const Outputs out = RunNorm(in);
    ExpectSameBits(out.hidden, Sum(in));
    const std::vector<std::vector<double>> expected = Expected(in);
    for (int64_t token = 0; token < in.tokens; ++token) {
      ExpectNearestE4M3(&out.codes[token * width], out.scales[token], expected[token], kF32Error);
      for (int64_t i = 0; i < width; ++i) {
        const double y = expected[token][i];
        // A bf16 rounding and the f32 arithmetic, whose terms are at most as large as the row's.
        ASSERT_NEAR(double(out.plain[token * width + i]), y,
                    std::ldexp(std::fabs(y), -8) + kF32Error * (std::fabs(y) + 8))
            << "token " << token << " column " << i;
      }
    }
  }
}

TEST_P(NormTest, ARowDependsOnNoOther) {
  std::mt19937 random(7);
  const Inputs all = RandomInputs(random, 9, 4104, GetParam());
  const Outputs together = RunNorm(all);
  for (int64_t token = 0; token < all.tokens; ++token) {
    const auto row = [&](const auto& values) {
      return std::decay_t<decltype(values)>(values.begin() + token * all.width,
                                            values.begin() + (token + 1) * all.width);
    };
    const Inputs one = {1, all.width, row(all.hidden), row(all.delta), all.gain, all.bias};
    const Outputs alone = RunNorm(one);
    EXPECT_EQ(alone.codes, row(together.codes));
    EXPECT_EQ(alone.scales[0], together.scales[token]);
    ExpectSameBits(alone.plain, row(together.plain));
  }
}

TEST_P(NormTest, ANanShowsInItsRowAlone) {
  std::mt19937 random(7);
  Inputs in = RandomInputs(random, 3, 64, GetParam());
  in.delta[64 + 5] = __float2bfloat16(std::numeric_limits<float>::quiet_NaN());
  const Outputs out = RunNorm(in);
  EXPECT_TRUE(std::isfinite(out.scales[0]));
  EXPECT_TRUE(std::isnan(out.scales[1]));
  EXPECT_TRUE(std::isfinite(out.scales[2]));
  EXPECT_TRUE(std::isnan(float(out.plain[64 + 5])));
}

TEST(RmsNorm, ZerosStayZeros) {
  const Bf16s zeros(64, __float2bfloat16(0));
  const Outputs out = RunNorm({1, 64, zeros, zeros, Bf16s(64, __float2bfloat16(1)), {}});
  EXPECT_EQ(out.codes, std::vector<uint8_t>(64, 0));
  EXPECT_EQ(out.scales[0], 0.f);
}

TEST(AddNorm, WithoutADeltaAndInPlace) {
  std::mt19937 random(3);
  Inputs in = RandomInputs(random, 2, 96, true);
  in.delta.assign(in.delta.size(), __float2bfloat16(0));
  DeviceArray<__nv_bfloat16> hidden(in.hidden);
  DeviceArray<__nv_bfloat16> gain(in.gain);
  DeviceArray<__nv_bfloat16> bias(in.bias);
  ASSERT_TRUE(AddNorm({gain.data(), bias.data(), kEps}, hidden.data(), nullptr, 2, 96,
                      hidden.data(), nullptr)
                  .ok());
  ExpectSameBits(hidden.Read(), RunNorm(in).plain);
}

TEST(AddNorm, RefusesWhatItCantLoad) {
  DeviceArray<__nv_bfloat16> x(64);
  const DeviceNorm norm = {x.data(), nullptr, kEps};
  EXPECT_EQ(AddNorm(norm, x.data(), nullptr, 1, 12, x.data(), nullptr).message(),
            "norm: found 1 rows of 12, expected rows whose width is a positive multiple of 8 up to "
            "32768");
  EXPECT_FALSE(AddNorm(norm, x.data() + 1, nullptr, 1, 8, x.data(), nullptr).ok());
  EXPECT_EQ(AddNorm({}, x.data(), nullptr, 1, 8, x.data(), nullptr).message(),
            "gain: found a null pointer, expected a device address");
}

}  // namespace
}  // namespace nibble
