#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "quant/base/strings.h"
#include "quant/formats/formats.h"
#include "quant/formats/number.h"

namespace nibble {
namespace {

// Ranges below this are rounded as if they were it, so that neither the scale nor its inverse
// leaves the normal floats.
constexpr float kMinRange = 1e-30f;

struct Range {
  float low = 0;
  float high = 0;
};

// The integer that orders as the float does (NaNs outside of the infinities), and back: integer
// minima vectorize without leave to reorder float arithmetic.
int32_t Ordered(int32_t bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }

// Of a row and 0; `high` is NaN where the row holds one.
Range RangeOf(absl::Span<const float> row) {
  int32_t low = 0;
  int32_t high = 0;
  for (const float x : row) {
    const int32_t ordered = Ordered(std::bit_cast<int32_t>(x));
    low = std::min(low, ordered);
    high = std::max(high, ordered);
  }
  const Range range = {std::bit_cast<float>(Ordered(low)), std::bit_cast<float>(Ordered(high))};
  return std::isnan(range.low) ? Range{range.low, range.low} : range;
}

// NaN stays NaN.
float AtLeast(float x, float low) { return x < low ? low : x; }

// How a row's values become steps of a format, and steps values.
struct Steps {
  float inverse = 0;
  float scale = 0;
  float zero = 0;
};

Steps SymmetricSteps(absl::Span<const float> row, float format_max) {
  const Range range = RangeOf(row);
  const float largest = AtLeast(AtLeast(range.high, -range.low), kMinRange);
  return {format_max / largest, largest / format_max, 0};
}

template <class Number>
void RoundSymmetric(absl::Span<float> row) {
  const Steps steps = SymmetricSteps(row, Number::kMax);
  for (float& x : row) x = Number::Round(x * steps.inverse) * steps.scale;
}

constexpr float kLevels = 255;

Steps AsymmetricSteps(absl::Span<const float> row) {
  const Range range = RangeOf(row);
  const float span = AtLeast(range.high - range.low, kMinRange);
  const float inverse = kLevels / span;
  return {inverse, span / kLevels, number::Clamp(std::nearbyint(-range.low * inverse), 0, kLevels)};
}

void RoundAsymmetric(absl::Span<float> row) {
  const auto [inverse, scale, zero] = AsymmetricSteps(row);
  for (float& x : row) {
    const float steps = number::RoundToInteger(number::Clamp(x * inverse, -kLevels, kLevels));
    x = (number::Clamp(steps + zero, 0, kLevels) - zero) * scale;
  }
}

}  // namespace

absl::Status ActivationSpec::Validate() const {
  if (format != Format::kE4M3 && format != Format::kE5M2 && format != Format::kInt8) {
    return absl::InvalidArgumentError(
        StrCat("activations: found ", FormatName(format), ", expected e4m3, e5m2 or int8"));
  }
  if (asymmetric && format != Format::kInt8) {
    return absl::InvalidArgumentError(
        StrCat("activations: found asymmetric ", FormatName(format), ", expected int8"));
  }
  return absl::OkStatus();
}

ActivationScale ComputeActivationScale(const ActivationSpec& spec, absl::Span<const float> row) {
  const Steps steps =
      spec.asymmetric ? AsymmetricSteps(row) : SymmetricSteps(row, FormatMax(spec.format));
  return {steps.scale, static_cast<int>(steps.zero)};
}

void RoundActivationRow(const ActivationSpec& spec, absl::Span<float> row) {
  if (spec.asymmetric) return RoundAsymmetric(row);
  number::Visit(spec.format, [row](auto type) { RoundSymmetric<decltype(type)>(row); });
}

}  // namespace nibble
