#include <algorithm>
#include <array>
#include <cmath>

#include "quant/base/strings.h"
#include "quant/formats/formats.h"
#include "quant/formats/number.h"
#include "quant/formats/weight_steps.h"

namespace nibble {
namespace {

constexpr std::array<int, 7> kGroupSizes = {16, 32, 64, 128, 256, 512, 1024};

// Squared error of quantizing `values` with a symmetric scale.
double SquaredError(Format format, absl::Span<const float> values, float scale) {
  return number::Visit(format, [&](auto type) {
    std::array<double, 4> sums = {};  // partial sums, so that the additions overlap
    for (size_t i = 0; i < values.size(); ++i) {
      const double error = number::WeightCode<decltype(type), false>::Error(values[i], scale);
      sums[i % sums.size()] += error * error;
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  });
}

// k of a group with scale `group_scale` and `values`, before the clamp.
int ChooseM2Exponent(const WeightSpec& spec, absl::Span<const float> values, float group_scale,
                     float row_scale) {
  return number::ChooseM2Exponent(spec.rounding, group_scale, row_scale, [&](float scale) {
    return SquaredError(spec.format, values, scale);
  });
}

int ClampCounted(int value, int low, int high, int* clamped) {
  const int result = std::clamp(value, low, high);
  *clamped += result != value ? 1 : 0;
  return result;
}

absl::Span<const float> GroupOf(const WeightSpec& spec, absl::Span<const float> row,
                                int64_t group) {
  const int64_t width = GroupWidth(static_cast<int64_t>(row.size()), spec.group_size);
  return row.subspan(group * width, width);  // subspan shortens the last group
}

void ConstrainRowM1(RowScales& row) {
  for (const float scale : row.scale) row.exponent.push_back(number::RoundedLog2(scale).ceil);
  const int largest = *std::max_element(row.exponent.begin(), row.exponent.end());
  for (size_t g = 0; g < row.scale.size(); ++g) {
    row.exponent[g] =
        ClampCounted(row.exponent[g], largest - kMaxExponentOffset, largest, &row.clamped);
    row.scale[g] = number::PowerOfTwo(row.exponent[g]);
  }
}

void ConstrainRowM2(const WeightSpec& spec, absl::Span<const float> values, RowScales& row) {
  row.row_scale = *std::max_element(row.scale.begin(), row.scale.end());
  for (size_t g = 0; g < row.scale.size(); ++g) {
    const int k = ChooseM2Exponent(spec, GroupOf(spec, values, g), row.scale[g], row.row_scale);
    row.exponent.push_back(ClampCounted(k, 0, kMaxExponentOffset, &row.clamped));
    row.scale[g] = number::M2Scale(row.row_scale, row.exponent[g]);
  }
}

}  // namespace

std::string_view ScaleConstraintName(ScaleConstraint constraint) {
  constexpr std::array<std::string_view, 3> kNames = {"none", "m1", "m2"};
  return kNames[static_cast<size_t>(constraint)];
}

absl::StatusOr<ScaleConstraint> ParseScaleConstraint(std::string_view name) {
  for (const auto constraint :
       {ScaleConstraint::kNone, ScaleConstraint::kM1, ScaleConstraint::kM2}) {
    if (ScaleConstraintName(constraint) == name) return constraint;
  }
  return absl::InvalidArgumentError(
      StrCat("scale constraint \"", name, "\" is unknown; expected none, m1 or m2"));
}

std::string_view M2RoundingName(M2Rounding rounding) {
  constexpr std::array<std::string_view, 3> kNames = {"ceil", "floor", "mse"};
  return kNames[static_cast<size_t>(rounding)];
}

absl::StatusOr<M2Rounding> ParseM2Rounding(std::string_view name) {
  for (const auto rounding : {M2Rounding::kCeil, M2Rounding::kFloor, M2Rounding::kMse}) {
    if (M2RoundingName(rounding) == name) return rounding;
  }
  return absl::InvalidArgumentError(
      StrCat("M2 rounding \"", name, "\" is unknown; expected ceil, floor or mse"));
}

absl::Status CheckGroupSize(int group_size) {
  if (group_size == kWholeRow ||
      std::find(kGroupSizes.begin(), kGroupSizes.end(), group_size) != kGroupSizes.end()) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      StrCat("group_size: found ", group_size,
             ", expected 16, 32, 64, 128, 256, 512, 1024 or -1 for a whole row"));
}

absl::Status WeightSpec::Validate() const {
  if (absl::Status status = CheckGroupSize(group_size); !status.ok()) return status;
  if (asymmetric && !IsInteger(format)) {
    return absl::InvalidArgumentError(StrCat("weights_asymmetric: found true with ",
                                             FormatName(format), ", expected int4 or int8"));
  }
  if (asymmetric && constraint != ScaleConstraint::kNone) {
    return absl::InvalidArgumentError(
        StrCat("scale: found ", ScaleConstraintName(constraint),
               " with asymmetric weights, expected none: a zero point goes with a real scale"));
  }
  return absl::OkStatus();
}

int64_t GroupWidth(int64_t cols, int group_size) {
  return group_size == kWholeRow ? cols : group_size;
}

int64_t GroupCount(int64_t cols, int group_size) {
  if (cols == 0) return 0;
  const int64_t width = GroupWidth(cols, group_size);
  return (cols + width - 1) / width;
}

GroupScale ComputeGroupScale(const WeightSpec& spec, absl::Span<const float> values) {
  float low = 0;
  float high = 0;
  for (const float value : values) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  return number::VisitWeight(spec, [&](auto code) { return decltype(code)::Scale(low, high); });
}

RowScales ComputeRowScales(const WeightSpec& spec, absl::Span<const float> row) {
  RowScales scales;
  const int64_t groups = GroupCount(static_cast<int64_t>(row.size()), spec.group_size);
  for (int64_t g = 0; g < groups; ++g) {
    const GroupScale group = ComputeGroupScale(spec, GroupOf(spec, row, g));
    scales.scale.push_back(group.scale);
    if (spec.asymmetric) scales.zero.push_back(group.zero);
  }
  if (groups == 0) return scales;
  if (spec.constraint == ScaleConstraint::kM1) ConstrainRowM1(scales);
  if (spec.constraint == ScaleConstraint::kM2) ConstrainRowM2(spec, row, scales);
  return scales;
}

int ConstrainM2(const WeightSpec& spec, absl::Span<const float> values, float row_scale,
                int* clamped) {
  const float group_scale = ComputeGroupScale(spec, values).scale;
  const int k = ChooseM2Exponent(spec, values, group_scale, row_scale);
  return ClampCounted(k, 0, kMaxExponentOffset, clamped);
}

void UpdateGroupScale(const WeightSpec& spec, absl::Span<const float> values, int64_t group,
                      RowScales& row) {
  if (spec.constraint == ScaleConstraint::kM2) {
    row.exponent[group] = ConstrainM2(spec, values, row.row_scale, &row.clamped);
    row.scale[group] = number::M2Scale(row.row_scale, row.exponent[group]);
    return;
  }
  const GroupScale updated = ComputeGroupScale(spec, values);
  row.scale[group] = updated.scale;
  if (spec.asymmetric) row.zero[group] = updated.zero;
  if (spec.constraint == ScaleConstraint::kM1) {
    const auto first = row.exponent.begin();
    const int low = *std::max_element(first, row.exponent.end()) - kMaxExponentOffset;
    int high = 127;
    for (auto e = first; e != first + group; ++e) high = std::min(high, *e + kMaxExponentOffset);
    row.exponent[group] =
        ClampCounted(number::RoundedLog2(updated.scale).ceil, low, high, &row.clamped);
    row.scale[group] = number::PowerOfTwo(row.exponent[group]);
  }
}

uint8_t QuantizeWeight(const WeightSpec& spec, float w, float scale, uint8_t zero) {
  return number::VisitWeight(spec,
                             [&](auto code) { return decltype(code)::Quantize(w, scale, zero); });
}

float DequantizeWeight(const WeightSpec& spec, uint8_t code, float scale, uint8_t zero) {
  if (!spec.asymmetric) return DecodeValue(spec.format, code) * scale;
  return static_cast<float>(static_cast<int>(code) - static_cast<int>(zero)) * scale;
}

}  // namespace nibble
