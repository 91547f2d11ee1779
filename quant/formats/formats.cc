#include "quant/formats/formats.h"

#include <array>
#include <cmath>
#include <limits>

#include "quant/base/strings.h"
#include "quant/formats/number.h"

namespace nibble {
namespace {

struct FormatInfo {
  Format format;
  std::string_view name;
};

constexpr std::array<FormatInfo, 6> kFormats = {{{Format::kE2M1, "e2m1"},
                                                 {Format::kE3M0, "e3m0"},
                                                 {Format::kE4M3, "e4m3"},
                                                 {Format::kE5M2, "e5m2"},
                                                 {Format::kInt4, "int4"},
                                                 {Format::kInt8, "int8"}}};

// The codes that DecodeMagnitude does not cover: E4M3's two NaNs, E5M2's infinities and NaNs.
float DecodeSpecial(Format format, uint8_t code, float finite) {
  const uint8_t magnitude = code & 0x7f;
  if (format == Format::kE4M3 && magnitude == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  if (format == Format::kE5M2 && magnitude == 0x7c) {
    return std::copysign(std::numeric_limits<float>::infinity(), finite);
  }
  if (format == Format::kE5M2 && magnitude > 0x7c) return std::numeric_limits<float>::quiet_NaN();
  return finite;
}

}  // namespace

std::string_view FormatName(Format format) { return kFormats[static_cast<size_t>(format)].name; }

absl::StatusOr<Format> ParseFormat(std::string_view name) {
  for (const FormatInfo& info : kFormats) {
    if (info.name == name) return info.format;
  }
  return absl::InvalidArgumentError(
      StrCat("format \"", name, "\" is unknown; expected e2m1, e3m0, e4m3, e5m2, int4 or int8"));
}

int FormatBits(Format format) {
  return number::Visit(format, [](auto type) { return decltype(type)::kBits; });
}

float FormatMax(Format format) {
  return number::Visit(format, [](auto type) { return decltype(type)::kMax; });
}

bool IsInteger(Format format) { return format == Format::kInt4 || format == Format::kInt8; }

uint8_t EncodeValue(Format format, float x) {
  return number::Visit(format, [x](auto type) { return decltype(type)::Encode(x); });
}

float DecodeValue(Format format, uint8_t code) {
  const float value =
      number::Visit(format, [code](auto type) { return decltype(type)::Decode(code); });
  return DecodeSpecial(format, code, value);
}

float RoundToFormat(Format format, float x) {
  return number::Visit(format, [x](auto type) { return decltype(type)::Round(x); });
}

uint8_t FoldExponent(Format format, uint8_t code, int k) {
  const int bias = format == Format::kE3M0 ? 4 : 6;
  return number::E4M3::Encode(DecodeValue(format, code) * number::PowerOfTwo(bias - k));
}

absl::Status CheckFinite(std::string_view name, absl::Span<const float> values) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) {
      return absl::InvalidArgumentError(
          StrCat(name, ": value ", i, " is ", values[i], "; expected finite numbers"));
    }
  }
  return absl::OkStatus();
}

}  // namespace nibble
