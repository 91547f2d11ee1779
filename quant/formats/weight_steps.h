// How a weight becomes a code and a group's extremes its scale: the arithmetic that the CPU and the
// CUDA kernels share. Private to formats/, gptq/ and the kernels; formats.h is the interface.
#pragma once

#include <bit>
#include <cstdint>

#include "quant/formats/formats.h"
#include "quant/formats/number.h"

namespace nibble::number {

// A format's codes under a scale, and under a zero point if kAsymmetric.
template <class NumberType, bool kAsymmetricCodes>
struct WeightCode {
  using Number = NumberType;
  static constexpr bool kAsymmetric = kAsymmetricCodes;
  static constexpr float kLevels = static_cast<float>((1 << Number::kBits) - 1);

  static constexpr uint8_t Quantize(float w, float scale, uint8_t zero) {
    if constexpr (!kAsymmetric) return Number::Encode(w / scale);
    const float steps = RoundToInteger(Clamp(w / scale, -kLevels, kLevels));
    return static_cast<uint8_t>(Clamp(steps + static_cast<float>(zero), 0, kLevels));
  }

  static constexpr float Dequantize(uint8_t code, float scale, uint8_t zero) {
    if constexpr (!kAsymmetric) return Number::Decode(code) * scale;
    return static_cast<float>(static_cast<int>(code) - static_cast<int>(zero)) * scale;
  }

  // From the least and the largest value of a group and 0. Halves, so that the range of the largest
  // floats does not overflow; exactly range / kLevels.
  static constexpr GroupScale Scale(float low, float high) {
    if constexpr (!kAsymmetric) {
      const float scale = (-low < high ? high : -low) / Number::kMax;
      return {scale < kMinScale ? kMinScale : scale, 0};
    }
    const float range = (0.5f * high - 0.5f * low) / (0.5f * kLevels);
    const float scale = range < kMinScale ? kMinScale : range;
    return {scale, static_cast<uint8_t>(Clamp(RoundToInteger(-low / scale), 0, kLevels))};
  }

  static constexpr float Error(float w, float scale) {
    return w - Number::Round(w / scale) * scale;
  }
};

// Calls function(WeightCode{}) with the one of `spec`, which is valid.
template <class Function>
decltype(auto) VisitWeight(const WeightSpec& spec, Function&& function) {
  if (!spec.asymmetric) {
    return Visit(spec.format,
                 [&](auto type) { return function(WeightCode<decltype(type), false>{}); });
  }
  return spec.format == Format::kInt4 ? function(WeightCode<Int4, true>{})
                                      : function(WeightCode<Int8, true>{});
}

struct CeilFloor {
  int ceil;
  int floor;
};

// log2 of a positive normal number, rounded both ways without computing a logarithm.
constexpr CeilFloor RoundedLog2(double x) {
  const auto bits = std::bit_cast<uint64_t>(x);
  const int floor = static_cast<int>(bits >> 52) - 1023;
  return {(bits << 12) == 0 ? floor : floor + 1, floor};
}

constexpr float M2Scale(float row_scale, int k) { return row_scale * PowerOfTwo(-k); }

constexpr int ClampOffset(int k) {
  return k < 0 ? 0 : (k > kMaxExponentOffset ? kMaxExponentOffset : k);
}

// k of an M2 group before its clamp. squared_error(scale): of the group's values under it.
template <class SquaredError>
constexpr int ChooseM2Exponent(M2Rounding rounding, float group_scale, float row_scale,
                               const SquaredError& squared_error) {
  const CeilFloor k = RoundedLog2(static_cast<double>(row_scale) / group_scale);
  if (rounding == M2Rounding::kCeil) return k.ceil;
  if (rounding == M2Rounding::kFloor) return k.floor;
  const int low = ClampOffset(k.floor);
  const int high = ClampOffset(k.ceil);
  if (low == high) return k.ceil;
  const double coarse = squared_error(M2Scale(row_scale, low));
  const double clipped = squared_error(M2Scale(row_scale, high));
  return coarse < clipped ? k.floor : k.ceil;
}

}  // namespace nibble::number
