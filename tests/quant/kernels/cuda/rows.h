// Rows of bf16 for the kernels' tests, and what an E4M3 row may differ from its values by.
#pragma once

#include <cuda_bf16.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "quant/formats/formats.h"

namespace nibble {

using Bf16s = std::vector<__nv_bfloat16>;

// Normal values, each row of its own size in 2^-spread .. 2^spread.
inline Bf16s RandomRows(std::mt19937& random, int64_t rows, int64_t width, int spread = 10) {
  Bf16s values;
  std::normal_distribution<float> normal;
  for (int64_t row = 0; row < rows; ++row) {
    const float size =
        std::exp2(static_cast<float>(random() % static_cast<uint32_t>(2 * spread + 1)) -
                  static_cast<float>(spread));
    for (int64_t i = 0; i < width; ++i) values.push_back(__float2bfloat16(normal(random) * size));
  }
  return values;
}

inline std::vector<double> Widen(const Bf16s& values) { return {values.begin(), values.end()}; }

// The codes of one row are the nearest to `expected` (the true values), and its scale is right:
// `error`: how far, relative to the row's largest, the kernel's f32 arithmetic may be off.
inline void ExpectNearestE4M3(const uint8_t* codes, float scale,
                              const std::vector<double>& expected, double error) {
  double amax = 0;
  for (const double y : expected) amax = std::max(amax, std::fabs(y));
  ASSERT_NEAR(scale, amax / 448, error * amax / 448);
  for (size_t i = 0; i < expected.size(); ++i) {
    const double found = static_cast<double>(DecodeValue(Format::kE4M3, codes[i])) * scale;
    // Half a step: 2^-4 of a normal value, 2^-10 of the scale below.
    const double half =
        std::max(std::ldexp(std::fabs(expected[i]), -4), std::ldexp(double{scale}, -10));
    ASSERT_NEAR(found, expected[i], half + 2 * error * amax) << "column " << i;
  }
}

}  // namespace nibble
