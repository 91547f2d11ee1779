#include <algorithm>
#include <array>
#include <cmath>

#include "quant/base/strings.h"
#include "quant/formats/formats.h"
#include "quant/formats/number.h"

namespace nibble {
namespace {

int64_t PackedBytes(Format format, int64_t count) { return (count * FormatBits(format) + 7) / 8; }

uint8_t NibbleAt(absl::Span<const uint8_t> packed, int64_t i) {
  return (packed[i / 2] >> (4 * (i % 2))) & 0xf;
}

void PackInto(Format format, absl::Span<const uint8_t> codes, uint8_t* packed) {
  if (FormatBits(format) == 8) {
    std::copy(codes.begin(), codes.end(), packed);
    return;
  }
  for (size_t i = 0; i < codes.size(); i += 2) {
    const uint8_t high = i + 1 < codes.size() ? codes[i + 1] & 0xf : 0;
    packed[i / 2] = static_cast<uint8_t>((codes[i] & 0xf) | (high << 4));
  }
}

void UnpackInto(Format format, absl::Span<const uint8_t> packed, absl::Span<uint8_t> codes) {
  if (FormatBits(format) == 8) {
    std::copy_n(packed.begin(), codes.size(), codes.begin());
    return;
  }
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = NibbleAt(packed, i);
}

absl::Status CheckSize(std::string_view name, std::string_view part, size_t found,
                       int64_t expected) {
  if (static_cast<int64_t>(found) == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(
      StrCat(name, ": ", part, " holds ", found, " elements; expected ", expected));
}

absl::Status CheckScales(std::string_view name, std::string_view part,
                         absl::Span<const float> scales) {
  for (size_t i = 0; i < scales.size(); ++i) {
    if (std::isfinite(scales[i]) && scales[i] > 0) continue;
    return absl::InvalidArgumentError(
        StrCat(name, ": ", part, " ", i, " is ", scales[i], "; expected a finite positive number"));
  }
  return absl::OkStatus();
}

// M1: every exponent a normal float's, and within kMaxExponentOffset of its row's largest.
absl::Status CheckExponents(std::string_view name, const QuantizedMatrix& matrix) {
  const int64_t groups = matrix.groups();
  for (int64_t row = 0; row < matrix.rows; ++row) {
    const auto exponents = absl::MakeConstSpan(matrix.exponent).subspan(row * groups, groups);
    const int largest = *std::max_element(exponents.begin(), exponents.end());
    for (const int exponent : exponents) {
      if (exponent >= -126 && largest - exponent <= kMaxExponentOffset) continue;
      return absl::InvalidArgumentError(
          StrCat(name, ": exponent ", exponent, " in row ", row, "; expected -126..127 and at",
                 " most ", kMaxExponentOffset, " below the row's largest, ", largest));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckOffsets(std::string_view name, const QuantizedMatrix& matrix) {
  const int64_t groups = matrix.groups();
  const int64_t stride = (groups + 1) / 2;
  for (int64_t row = 0; row < matrix.rows; ++row) {
    const auto packed = absl::MakeConstSpan(matrix.k).subspan(row * stride, stride);
    for (int64_t g = 0; g < groups; ++g) {
      const int k = NibbleAt(packed, g);
      if (k <= kMaxExponentOffset) continue;
      return absl::InvalidArgumentError(StrCat(name, ": k of row ", row, ", group ", g, " is ", k,
                                               "; expected 0..", kMaxExponentOffset));
    }
  }
  return absl::OkStatus();
}

// True if the code stands for a finite value that the encoder can produce.
bool IsValidCode(const WeightSpec& spec, uint8_t code) {
  if (spec.asymmetric) return true;
  return std::fabs(DecodeValue(spec.format, code)) <= FormatMax(spec.format);
}

absl::Status CheckCodes(std::string_view name, const QuantizedMatrix& matrix) {
  std::array<bool, 256> valid;
  for (int code = 0; code < 256; ++code) {
    const bool high = FormatBits(matrix.spec.format) == 8 || IsValidCode(matrix.spec, code >> 4);
    valid[code] = high && IsValidCode(matrix.spec, static_cast<uint8_t>(code));
  }
  for (size_t i = 0; i < matrix.codes.size(); ++i) {
    if (valid[matrix.codes[i]]) continue;
    return absl::InvalidArgumentError(StrCat(
        name, ": byte ", i, " of the codes is 0x", absl::Hex(matrix.codes[i], absl::kZeroPad2),
        ", which holds no ", FormatName(matrix.spec.format), " value"));
  }
  return absl::OkStatus();
}

absl::Status CheckSizes(std::string_view name, const QuantizedMatrix& m) {
  const bool none = m.spec.constraint == ScaleConstraint::kNone;
  const bool m1 = m.spec.constraint == ScaleConstraint::kM1;
  const bool m2 = m.spec.constraint == ScaleConstraint::kM2;
  const int64_t groups = m.groups();
  absl::Status status =
      CheckSize(name, "codes", m.codes.size(), m.rows * PackedBytes(m.spec.format, m.cols));
  status.Update(CheckSize(name, "scale", m.scale.size(), none ? m.rows * groups : 0));
  status.Update(CheckSize(name, "exponent", m.exponent.size(), m1 ? m.rows * groups : 0));
  status.Update(CheckSize(name, "row_scale", m.row_scale.size(), m2 ? m.rows : 0));
  status.Update(CheckSize(name, "k", m.k.size(), m2 ? m.rows * ((groups + 1) / 2) : 0));
  status.Update(CheckSize(name, "zero", m.zero.size(), m.spec.asymmetric ? m.rows * groups : 0));
  return status;
}

}  // namespace

absl::Status QuantizedMatrix::Validate(std::string_view name) const {
  if (const absl::Status status = spec.Validate(); !status.ok()) {
    return absl::Status(status.code(), StrCat(name, ": ", status.message()));
  }
  if (rows <= 0 || cols <= 0) {
    return absl::InvalidArgumentError(
        StrCat(name, ": shape is [", rows, ", ", cols, "]; expected positive sizes"));
  }
  absl::Status status = CheckSizes(name, *this);
  if (!status.ok()) return status;
  status.Update(CheckScales(name, "scale", scale));
  status.Update(CheckScales(name, "row_scale", row_scale));
  if (spec.constraint == ScaleConstraint::kM1) status.Update(CheckExponents(name, *this));
  if (spec.constraint == ScaleConstraint::kM2) status.Update(CheckOffsets(name, *this));
  status.Update(CheckCodes(name, *this));
  return status;
}

float QuantizedMatrix::GroupScaleAt(int64_t row, int64_t group) const {
  const int64_t index = row * groups() + group;
  switch (spec.constraint) {
    case ScaleConstraint::kNone:
      return scale[index];
    case ScaleConstraint::kM1:
      return number::PowerOfTwo(exponent[index]);
    case ScaleConstraint::kM2:
      break;
  }
  return row_scale[row] * number::PowerOfTwo(-GroupOffsetAt(row, group));
}

int QuantizedMatrix::GroupOffsetAt(int64_t row, int64_t group) const {
  const int64_t stride = (groups() + 1) / 2;
  return NibbleAt(absl::MakeConstSpan(k).subspan(row * stride, stride), group);
}

void QuantizedMatrix::DequantizeRow(int64_t row, absl::Span<float> out) const {
  const int64_t stride = PackedBytes(spec.format, cols);
  std::vector<uint8_t> unpacked(cols);
  UnpackInto(spec.format, absl::MakeConstSpan(codes).subspan(row * stride, stride),
             absl::MakeSpan(unpacked));
  const int64_t width = GroupWidth(cols, spec.group_size);
  for (int64_t g = 0; g < groups(); ++g) {
    const float group_scale = GroupScaleAt(row, g);
    const uint8_t group_zero = spec.asymmetric ? zero[row * groups() + g] : 0;
    const int64_t end = std::min(cols, (g + 1) * width);
    for (int64_t c = g * width; c < end; ++c) {
      out[c] = DequantizeWeight(spec, unpacked[c], group_scale, group_zero);
    }
  }
}

double QuantizedMatrix::BitsPerWeight() const {
  return 8.0 * static_cast<double>(StoredBytes(spec, rows, cols)) /
         (static_cast<double>(rows) * static_cast<double>(cols));
}

int64_t StoredBytes(const WeightSpec& spec, int64_t rows, int64_t cols) {
  const int64_t groups = GroupCount(cols, spec.group_size);
  const int64_t zeros = spec.asymmetric ? groups : 0;
  int64_t scales = 4 * groups;
  if (spec.constraint == ScaleConstraint::kM1) scales = groups;
  if (spec.constraint == ScaleConstraint::kM2) scales = 4 + (groups + 1) / 2;
  return rows * (PackedBytes(spec.format, cols) + scales + zeros);
}

QuantizedMatrix MakeQuantizedMatrix(const WeightSpec& spec, int64_t rows, int64_t cols) {
  QuantizedMatrix matrix;
  matrix.spec = spec;
  matrix.rows = rows;
  matrix.cols = cols;
  const int64_t groups = matrix.groups();
  matrix.codes.resize(rows * PackedBytes(spec.format, cols));
  if (spec.constraint == ScaleConstraint::kNone) matrix.scale.resize(rows * groups);
  if (spec.constraint == ScaleConstraint::kM1) matrix.exponent.resize(rows * groups);
  if (spec.constraint == ScaleConstraint::kM2) {
    matrix.row_scale.resize(rows);
    matrix.k.resize(rows * ((groups + 1) / 2));
  }
  if (spec.asymmetric) matrix.zero.resize(rows * groups);
  return matrix;
}

void StoreRow(QuantizedMatrix& matrix, int64_t row, absl::Span<const uint8_t> codes,
              const RowScales& scales) {
  const WeightSpec& spec = matrix.spec;
  const int64_t groups = matrix.groups();
  PackInto(spec.format, codes, matrix.codes.data() + row * PackedBytes(spec.format, matrix.cols));
  if (spec.asymmetric) {
    std::copy(scales.zero.begin(), scales.zero.end(), matrix.zero.begin() + row * groups);
  }
  if (spec.constraint == ScaleConstraint::kNone) {
    std::copy(scales.scale.begin(), scales.scale.end(), matrix.scale.begin() + row * groups);
  } else if (spec.constraint == ScaleConstraint::kM1) {
    std::copy(scales.exponent.begin(), scales.exponent.end(),
              matrix.exponent.begin() + row * groups);
  } else {
    matrix.row_scale[row] = scales.row_scale;
    const std::vector<uint8_t> k(scales.exponent.begin(), scales.exponent.end());
    PackInto(Format::kInt4, k, matrix.k.data() + row * ((groups + 1) / 2));
  }
}

std::vector<uint8_t> PackCodes(Format format, absl::Span<const uint8_t> codes) {
  std::vector<uint8_t> packed(PackedBytes(format, static_cast<int64_t>(codes.size())));
  PackInto(format, codes, packed.data());
  return packed;
}

std::vector<uint8_t> UnpackCodes(Format format, absl::Span<const uint8_t> packed, int64_t count) {
  std::vector<uint8_t> codes(count);
  UnpackInto(format, packed, absl::MakeSpan(codes));
  return codes;
}

}  // namespace nibble
