#include <algorithm>
#include <bit>
#include <cstdint>

#include "quant/base/strings.h"
#include "quant/formats/activation_steps.h"
#include "quant/formats/formats.h"
#include "quant/formats/number.h"

namespace nibble {
namespace {

number::Range RangeOf(absl::Span<const float> row) {
  int32_t low = 0;
  int32_t high = 0;
  for (const float x : row) {
    const int32_t ordered = number::Ordered(std::bit_cast<int32_t>(x));
    low = std::min(low, ordered);
    high = std::max(high, ordered);
  }
  return number::RangeOfOrdered(low, high);
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
  const number::Range range = RangeOf(row);
  const number::Steps steps = spec.asymmetric
                                  ? number::AsymmetricSteps(range)
                                  : number::SymmetricSteps(range, FormatMax(spec.format));
  return {steps.scale, static_cast<int>(steps.zero)};
}

float RoundActivationSteps(const ActivationSpec& spec, absl::Span<float> row) {
  const number::Range range = RangeOf(row);
  if (spec.asymmetric) {
    const number::Steps steps = number::AsymmetricSteps(range);
    for (float& x : row) x = number::NearestAsymmetric(x, steps);
    return steps.scale;
  }
  return number::Visit(spec.format, [&](auto type) {
    using Number = decltype(type);
    const number::Steps steps = number::SymmetricSteps(range, Number::kMax);
    for (float& x : row) x = number::NearestSymmetric<Number>(x, steps);
    return steps.scale;
  });
}

void RoundActivationRow(const ActivationSpec& spec, absl::Span<float> row) {
  const float scale = RoundActivationSteps(spec, row);
  for (float& x : row) x *= scale;
}

}  // namespace nibble
