// Conversions between the 16-bit floating-point types and f32.
#include <bit>
#include <cmath>
#include <cstring>

#include "quant/base/strings.h"
#include "quant/model/checkpoint/json.h"
#include "quant/model/checkpoint/safetensors.h"

namespace nibble {
namespace {

// Written with integer selects only, so that loops over it vectorize without F16C.
inline float WidenHalf(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = bits & 0x7c00u;
  const uint32_t mantissa = bits & 0x03ffu;
  const auto subnormal =
      std::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(mantissa)) * 0x1p-24f);
  // Exponents move from bias 15 to bias 127; infinities and NaN to the all-ones exponent.
  const uint32_t rebias = (exponent == 0x7c00u ? 224u : 112u) << 23;
  const uint32_t normal = (static_cast<uint32_t>(bits & 0x7fffu) << 13) + rebias;
  return std::bit_cast<float>(sign | (exponent == 0 ? subnormal : normal));
}

inline float WidenBFloat16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

template <class Widen>
void WidenAll(const uint8_t* bytes, absl::Span<float> out, Widen widen) {
  float* const values = out.data();
  for (size_t i = 0; i < out.size(); ++i) {
    uint16_t bits;
    std::memcpy(&bits, bytes + 2 * i, sizeof(bits));
    values[i] = widen(bits);
  }
}

}  // namespace

float HalfToFloat(uint16_t bits) { return WidenHalf(bits); }
float BFloat16ToFloat(uint16_t bits) { return WidenBFloat16(bits); }

uint16_t FloatToBFloat16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  constexpr uint32_t kQuietBit = 0x40;
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | kQuietBit);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

absl::Status WidenToFloat(std::string_view name, const TensorView& view, absl::Span<float> out) {
  if (static_cast<int64_t>(out.size()) != view.elements()) {
    return absl::InvalidArgumentError(StrCat("tensor ", Quoted(name), ": found ", view.elements(),
                                             " values, expected ", out.size()));
  }
  switch (view.dtype) {
    case DType::kF32:
      if (!out.empty()) std::memcpy(out.data(), view.bytes.data(), view.bytes.size());
      return absl::OkStatus();
    case DType::kF16:
      WidenAll(view.bytes.data(), out, WidenHalf);
      return absl::OkStatus();
    case DType::kBF16:
      WidenAll(view.bytes.data(), out, WidenBFloat16);
      return absl::OkStatus();
    default:
      return absl::InvalidArgumentError(StrCat("tensor ", Quoted(name), ": found the type ",
                                               DTypeName(view.dtype),
                                               ", expected F32, F16 or BF16"));
  }
}

}  // namespace nibble
