// Branch-free arithmetic of the number formats, for loops that the compiler vectorizes and for
// CUDA. Private to formats/ and the kernels; formats.h is the interface.
#pragma once

#include <bit>
#include <cstdint>

#include "quant/formats/formats.h"

namespace nibble::number {

inline constexpr uint32_t kSignBit = 0x80000000u;
inline constexpr uint32_t kExponentBits = 0x7f800000u;

// 2^exponent for a normal float; exponent in -126..127.
constexpr float PowerOfTwo(int exponent) {
  return std::bit_cast<float>(static_cast<uint32_t>(exponent + 127) << 23);
}

// sign | exponent | mantissa. 2^kMinExponent is the smallest normal value, kMaxCode the largest
// finite magnitude.
template <int kBitCount, int kMantissa, int kMinExponent, uint32_t kMaxCode>
struct Float {
  static constexpr int kBits = kBitCount;
  static constexpr uint32_t kSign = 1u << (kBits - 1);
  static constexpr float kSubnormalStep = PowerOfTwo(kMinExponent - kMantissa);

  // Every magnitude but the formats' NaN and infinity codes.
  static constexpr float DecodeMagnitude(uint32_t code) {
    if ((code >> kMantissa) == 0) return static_cast<float>(code) * kSubnormalStep;
    constexpr uint32_t kRebias = static_cast<uint32_t>(kMinExponent - 1 + 127) << kMantissa;
    return std::bit_cast<float>((code + kRebias) << (23 - kMantissa));
  }

  static constexpr float kMax = DecodeMagnitude(kMaxCode);

  static constexpr float Decode(uint8_t code) {
    const float magnitude = DecodeMagnitude(code & (kSign - 1));
    return (code & kSign) != 0 ? -magnitude : magnitude;
  }

  // Adding 2^(23 - mantissa) units of x's own exponent leaves exactly the format's bits in the sum,
  // rounded to even by the adder; with no mantissa bits an odd unit is the upper one, so ties go
  // up. The exponent is floored at the subnormals', whose step is the same. NaN stays NaN.
  static constexpr float Round(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    float magnitude = std::bit_cast<float>(bits & ~kSignBit);
    magnitude = kMax < magnitude ? kMax : magnitude;
    constexpr uint32_t kFloor = static_cast<uint32_t>(kMinExponent + 127) << 23;
    uint32_t exponent = std::bit_cast<uint32_t>(magnitude) & kExponentBits;
    exponent = exponent < kFloor ? kFloor : exponent;
    const float magic = std::bit_cast<float>(exponent + ((23u - kMantissa) << 23));
    const float rounded = (magnitude + magic) - magic;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(rounded) | (bits & kSignBit));
  }

  static constexpr uint8_t Encode(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(Round(x));
    const float magnitude = std::bit_cast<float>(bits & ~kSignBit);
    constexpr uint32_t kRebias = static_cast<uint32_t>(kMinExponent - 1 + 127) << kMantissa;
    const uint32_t code = magnitude < PowerOfTwo(kMinExponent)
                              ? static_cast<uint32_t>(magnitude / kSubnormalStep)
                              : ((bits & ~kSignBit) >> (23 - kMantissa)) - kRebias;
    return static_cast<uint8_t>(code | ((bits & kSignBit) != 0 ? kSign : 0u));
  }
};

// x rounded to an integer, ties to even; |x| <= 2^22.
constexpr float RoundToInteger(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
  return (x + kMagic) - kMagic;
}

// `low` or `high` where x is outside of them; NaN stays NaN.
constexpr float Clamp(float x, float low, float high) {
  x = x < low ? low : x;
  return high < x ? high : x;
}

// Two's complement, symmetric: the most negative code is not used.
template <int kBitCount>
struct Integer {
  static constexpr int kBits = kBitCount;
  static constexpr float kMax = static_cast<float>((1 << (kBits - 1)) - 1);

  static constexpr float Decode(uint8_t code) {
    constexpr uint32_t kSign = 1u << (kBits - 1);
    const uint32_t low = code & (2 * kSign - 1);
    return static_cast<float>(static_cast<int>(low ^ kSign) - static_cast<int>(kSign));
  }
  static constexpr float Round(float x) { return RoundToInteger(Clamp(x, -kMax, kMax)); }
  static constexpr uint8_t Encode(float x) {
    return static_cast<uint8_t>(static_cast<int>(Round(x)) & ((1 << kBits) - 1));
  }
};

using E2M1 = Float<4, 1, 0, 0x7>;
using E3M0 = Float<4, 0, -2, 0x7>;
using E4M3 = Float<8, 3, -6, 0x7e>;
using E5M2 = Float<8, 2, -14, 0x7b>;
using Int4 = Integer<4>;
using Int8 = Integer<8>;

// Calls function(T{}) with the number type of `format`.
template <class Function>
decltype(auto) Visit(Format format, Function&& function) {
  switch (format) {
    case Format::kE2M1:
      return function(E2M1{});
    case Format::kE3M0:
      return function(E3M0{});
    case Format::kE4M3:
      return function(E4M3{});
    case Format::kE5M2:
      return function(E5M2{});
    case Format::kInt4:
      return function(Int4{});
    case Format::kInt8:
      return function(Int8{});
  }
  __builtin_unreachable();
}

}  // namespace nibble::number
