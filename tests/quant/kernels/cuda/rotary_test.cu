// Runs on a GPU only. The oracle is double precision on the host.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "quant/formats/formats.h"
#include "quant/kernels/cuda/rotary.h"
#include "tests/quant/kernels/cuda/device_array.h"
#include "tests/quant/kernels/cuda/rows.h"

namespace nibble {
namespace {

constexpr int kPages = 5;
constexpr int kPageSize = 16;

struct Case {
  int heads;
  int kv_heads;
  int head_dim;
  KvFormat format;
  bool rotates;
};

class RotaryTest : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(
    Shapes, RotaryTest,
    testing::Values(Case{9, 3, 64, KvFormat::kBf16, true}, Case{8, 8, 80, KvFormat::kBf16, true},
                    Case{4, 2, 100, KvFormat::kBf16, true}, Case{32, 8, 128, KvFormat::kBf16, true},
                    Case{12, 12, 64, KvFormat::kBf16, false}, Case{4, 4, 64, KvFormat::kE4M3, true},
                    Case{8, 1, 80, KvFormat::kE4M3, true}, Case{4, 2, 100, KvFormat::kE4M3, true},
                    Case{16, 2, 128, KvFormat::kE4M3, true}));

std::vector<float> Frequencies(int head_dim) {
  std::vector<float> frequencies;
  for (int i = 0; i < head_dim / 2; ++i) {
    frequencies.push_back(static_cast<float>(std::pow(500000.0, -2.0 * i / head_dim)));
  }
  return frequencies;
}

// A head as the kernel should leave it: rotated, padded with zeros.
std::vector<double> Turned(const __nv_bfloat16* x, const Case& c, bool rotate, int32_t position) {
  std::vector<double> head(StoredHeadDim(c.head_dim), 0.0);
  const std::vector<float> frequencies = Frequencies(c.head_dim);
  const int half = c.head_dim / 2;
  for (int i = 0; i < half; ++i) {
    const double angle =
        rotate ? double{static_cast<float>(position) * frequencies[i]} : 0.0;  // f32, as the CPU's
    const double low = double(x[i]);
    const double high = double(x[half + i]);
    head[i] = low * std::cos(angle) - high * std::sin(angle);
    head[half + i] = high * std::cos(angle) + low * std::sin(angle);
  }
  return head;
}

// Half a step of the format around `expected`, and two f32 products of |x| up to 6.
double Tolerance(KvFormat format, double expected, double scale) {
  constexpr double kF32 = 12 * 0x1p-22;
  if (format == KvFormat::kBf16) return std::ldexp(std::fabs(expected), -8) + kF32;
  return std::max(std::ldexp(std::fabs(expected), -4), std::ldexp(scale, -10)) + kF32;
}

TEST_P(RotaryTest, AgreesWithDoublePrecision) {
  const Case& c = GetParam();
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  const std::vector<int32_t> positions = {0, 1, 17, 4095, 131071, 3};
  const std::vector<int32_t> slots = {0, 79, 33, 16, 15, -1};
  const auto tokens = static_cast<int64_t>(positions.size());
  const int dim = StoredHeadDim(c.head_dim);
  const int all_heads = c.heads + 2 * c.kv_heads;
  Bf16s qkv = RandomRows(random, tokens * all_heads, c.head_dim, 0);

  const bool is_e4m3 = c.format == KvFormat::kE4M3;
  const size_t bytes = size_t{kPages} * kPageSize * c.kv_heads * dim * (is_e4m3 ? 1 : 2);
  DeviceArray<__nv_bfloat16> device_qkv(qkv);
  DeviceArray<int32_t> device_positions(positions);
  DeviceArray<int32_t> device_slots(slots);
  DeviceArray<float> frequencies(Frequencies(c.head_dim));
  DeviceArray<uint8_t> k(bytes);
  DeviceArray<uint8_t> v(bytes);
  DeviceArray<__nv_bfloat16> q(tokens * c.heads * dim);
  const PagedKv kv = {k.data(),  v.data(),   c.format,  is_e4m3 ? 0.02f : 1.f, is_e4m3 ? 0.5f : 1.f,
                      kPageSize, c.kv_heads, c.head_dim};
  ASSERT_EQ(RotateAndAppend({device_qkv.data(), device_positions.data(), device_slots.data(),
                             c.rotates ? frequencies.data() : nullptr, tokens, c.heads},
                            kv, q.data(), nullptr),
            absl::OkStatus());
  const Bf16s found_q = q.Read();
  const std::vector<uint8_t> found_k = k.Read();
  const std::vector<uint8_t> found_v = v.Read();
  const auto cached = [&](const std::vector<uint8_t>& cache, int64_t i, float scale) {
    if (is_e4m3) return double{DecodeValue(Format::kE4M3, cache[i]) * scale};
    return double(reinterpret_cast<const __nv_bfloat16*>(cache.data())[i]);
  };
  for (int64_t t = 0; t < tokens; ++t) {
    for (int head = 0; head < all_heads; ++head) {
      const bool is_q = head < c.heads;
      const bool is_v = head >= c.heads + c.kv_heads;
      const std::vector<double> expected =
          Turned(&qkv[(t * all_heads + head) * c.head_dim], c, c.rotates && !is_v, positions[t]);
      for (int i = 0; i < dim; ++i) {
        SCOPED_TRACE(testing::Message() << "token " << t << " head " << head << " column " << i);
        if (slots[t] < 0) {
          if (is_q) ASSERT_TRUE(std::isnan(float(found_q[(t * c.heads + head) * dim + i])));
          continue;
        }
        const int64_t at =
            (int64_t{slots[t]} * c.kv_heads + (head - c.heads) % c.kv_heads) * dim + i;
        const float scale = is_v ? kv.v_scale : kv.k_scale;
        const double found = is_q ? double(found_q[(t * c.heads + head) * dim + i])
                                  : cached(is_v ? found_v : found_k, at, scale);
        const double tolerance =
            i < c.head_dim ? Tolerance(is_q ? KvFormat::kBf16 : c.format, expected[i], scale) : 0;
        // Keys beyond what their scale can hold saturate.
        const double limit = is_q || !is_e4m3 ? INFINITY : 448.0 * scale;
        ASSERT_NEAR(found, std::clamp(expected[i], -limit, limit), tolerance);
      }
    }
  }
  // Slot 1 was written by nobody.
  for (int64_t i = 0; i < c.kv_heads * dim; ++i) {
    ASSERT_TRUE(std::isnan(cached(found_k, int64_t{c.kv_heads} * dim + i, 1)));
  }
}

TEST(RotateAndAppend, RefusesShapesThatDontFit) {
  DeviceArray<__nv_bfloat16> x(4096);
  DeviceArray<int32_t> ints(4);
  PagedKv kv = {x.data(), x.data(), KvFormat::kBf16, 1, 1, 16, 2, 72};
  const QkvTokens step = {x.data(), ints.data(), ints.data(), nullptr, 1, 3};
  EXPECT_EQ(RotateAndAppend(step, kv, x.data(), nullptr).message(),
            "kv cache: head_dim: found 72, expected 64, 80, 100 or 128");
  kv.head_dim = 64;
  EXPECT_EQ(RotateAndAppend(step, kv, x.data(), nullptr).message(),
            "rotary: found 1 tokens of 3 heads, expected 0 or more tokens and a multiple of 2 "
            "heads");
  kv.k_scale = 2;
  EXPECT_FALSE(RotateAndAppend(step, kv, x.data(), nullptr).ok());
}

}  // namespace
}  // namespace nibble
