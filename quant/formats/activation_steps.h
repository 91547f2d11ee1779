// How a row of activations becomes steps of a format and steps become values: the arithmetic that
// the CPU and the CUDA kernels share. Private to formats/ and the kernels; formats.h is the
// interface.
#pragma once

#include <bit>
#include <cstdint>

#include "quant/formats/number.h"

namespace nibble::number {

// Ranges below this are rounded as if they were it, so that neither the scale nor its inverse
// leaves the normal floats.
inline constexpr float kMinRange = 1e-30f;

// The integer that orders as the float does (NaNs outside of the infinities), and back: integer
// minima vectorize without leave to reorder float arithmetic.
constexpr int32_t Ordered(int32_t bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }

// Of a row and 0; `high` is NaN where the row holds one.
struct Range {
  float low = 0;
  float high = 0;
};

// From the Ordered extremes of a row and 0.
constexpr Range RangeOfOrdered(int32_t ordered_low, int32_t ordered_high) {
  const auto low = std::bit_cast<float>(Ordered(ordered_low));
  const auto high = std::bit_cast<float>(Ordered(ordered_high));
  return low != low ? Range{low, low} : Range{low, high};
}

// NaN stays NaN.
constexpr float AtLeast(float x, float low) { return x < low ? low : x; }

struct Steps {
  float inverse = 0;
  float scale = 0;
  float zero = 0;
};

constexpr Steps SymmetricSteps(const Range& range, float format_max) {
  const float largest = AtLeast(AtLeast(range.high, -range.low), kMinRange);
  return {format_max / largest, largest / format_max, 0};
}

// x in steps of the scale; what it is rounded to is this times the scale.
template <class Number>
constexpr float NearestSymmetric(float x, const Steps& steps) {
  return Number::Round(x * steps.inverse);
}

template <class Number>
constexpr float RoundSymmetric(float x, const Steps& steps) {
  return NearestSymmetric<Number>(x, steps) * steps.scale;
}

inline constexpr float kLevels = 255;

constexpr Steps AsymmetricSteps(const Range& range) {
  const float span = AtLeast(range.high - range.low, kMinRange);
  const float inverse = kLevels / span;
  return {inverse, span / kLevels, Clamp(RoundToInteger(-range.low * inverse), 0, kLevels)};
}

constexpr float NearestAsymmetric(float x, const Steps& steps) {
  const float rounded = RoundToInteger(Clamp(x * steps.inverse, -kLevels, kLevels));
  return Clamp(rounded + steps.zero, 0, kLevels) - steps.zero;
}

constexpr float RoundAsymmetric(float x, const Steps& steps) {
  return NearestAsymmetric(x, steps) * steps.scale;
}

}  // namespace nibble::number
