#include "quant/kernels/cpu/arranged_matrix.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <new>

#include "quant/formats/number.h"

namespace nibble {
namespace {

constexpr int64_t kLineBytes = 64;
constexpr int64_t kHugePageBytes = int64_t{2} << 20;

int64_t RoundUp(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// Of a row's group in [panels, groups, 16].
int64_t ScalePlace(int64_t row, int64_t group, int64_t groups) {
  return (row / kPanelRows * groups + group) * kPanelRows + row % kPanelRows;
}

// A bf16 number whose products with a rounded activation, 2^-16 or more, and whatever these sum up
// to are never subnormal: tile.h.
bool IsBFloat16(float value) {
  constexpr float kSmallest = 0x1p-100F;
  return (std::bit_cast<uint32_t>(value) & 0xffffu) == 0 &&
         (value == 0 || std::fabs(value) >= kSmallest);
}

PanelKind KindOf(const WeightSpec& spec) {
  const bool codes = FormatBits(spec.format) == 4 && !spec.asymmetric;
  return codes ? PanelKind::kNibbles : PanelKind::kBFloat16;
}

// A weight before its scale.
float UnscaledValue(const WeightSpec& spec, uint8_t code, uint8_t zero) {
  if (!spec.asymmetric) return DecodeValue(spec.format, code);
  return static_cast<float>(static_cast<int>(code) - static_cast<int>(zero));
}

}  // namespace

ArrangedMatrix::ArrangedMatrix(PanelKind kind, int64_t rows, int64_t cols, int64_t group, Isa isa)
    : kind_(kind), rows_(rows), cols_(cols), group_(group), kernels_(&KernelsOf(isa)) {
  // Large ones in huge pages: they are read from end to end for every token.
  const int64_t needed = std::max<int64_t>(panel_count() * PanelBytes(), 1);
  const bool huge = needed >= 4 * kHugePageBytes;
  const int64_t alignment = huge ? kHugePageBytes : kLineBytes;
  const int64_t bytes = RoundUp(needed, alignment);
  panels_.reset(static_cast<uint8_t*>(std::aligned_alloc(alignment, bytes)));
  if (panels_ == nullptr) throw std::bad_alloc();
  if (huge) madvise(panels_.get(), bytes, MADV_HUGEPAGE);  // no matter if there are none
  std::memset(panels_.get(), 0, bytes);
}

ArrangedMatrix ArrangedMatrix::FromQuantized(const QuantizedMatrix& matrix, Isa isa) {
  const WeightSpec& spec = matrix.spec;
  const int64_t groups = matrix.groups();
  const int64_t width = GroupWidth(matrix.cols, spec.group_size);
  ArrangedMatrix out(KindOf(spec), matrix.rows, matrix.cols, RoundUp(width, kColumnStep), isa);
  if (out.kind_ == PanelKind::kNibbles) {
    for (int code = 0; code < 16; ++code) {
      out.table_[code] = DecodeValue(spec.format, static_cast<uint8_t>(code));
    }
  }
  const bool m2 = spec.constraint == ScaleConstraint::kM2;
  out.scales_.resize(out.panel_count() * (m2 ? 1 : groups) * kPanelRows);
  if (m2) out.exponents_.resize(out.panel_count() * groups * kPanelRows);
  const int64_t stride = (matrix.cols * FormatBits(spec.format) + 7) / 8;
  for (int64_t row = 0; row < matrix.rows; ++row) {
    const auto packed = absl::MakeConstSpan(matrix.codes).subspan(row * stride, stride);
    const std::vector<uint8_t> codes = UnpackCodes(spec.format, packed, matrix.cols);
    if (m2) out.scales_[row] = matrix.row_scale[row];
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t place = ScalePlace(row, g, groups);
      if (m2) {
        out.exponents_[place] = static_cast<int8_t>(-matrix.GroupOffsetAt(row, g));
      } else {
        out.scales_[place] = matrix.GroupScaleAt(row, g);
      }
      const uint8_t zero = spec.asymmetric ? matrix.zero[row * groups + g] : 0;
      const int64_t end = std::min(matrix.cols, (g + 1) * width);
      for (int64_t col = g * width; col < end; ++col) {
        if (out.kind_ == PanelKind::kNibbles) {
          out.PutCode(row, col, codes[col]);
        } else {
          out.PutValue(row, col, UnscaledValue(spec, codes[col], zero));
        }
      }
    }
  }
  return out;
}

ArrangedMatrix ArrangedMatrix::FromValues(absl::Span<const float> values, int64_t rows,
                                          int64_t cols, Isa isa) {
  const bool bf16 = std::all_of(values.begin(), values.end(), IsBFloat16);
  ArrangedMatrix out(bf16 ? PanelKind::kBFloat16 : PanelKind::kFloat, rows, cols,
                     RoundUp(cols, kColumnStep), isa);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < cols; ++col) out.PutValue(row, col, values[row * cols + col]);
  }
  return out;
}

int64_t ArrangedMatrix::bytes() const {
  return panel_count() * PanelBytes() +
         static_cast<int64_t>(scales_.size() * sizeof(float) + exponents_.size());
}

void ArrangedMatrix::Describe(int64_t first_panel, int count, TileInputs& inputs) const {
  inputs.kind = kind_;
  inputs.table = table_.data();
  inputs.columns = padded_cols();
  inputs.group = group_;
  inputs.panel_count = count;
  const int64_t groups = (padded_cols() + group_ - 1) / group_;
  for (int i = 0; i < count; ++i) {
    const int64_t panel = first_panel + i;
    inputs.panels[i] = panels_.get() + panel * PanelBytes();
    inputs.next[i] = panels_.get() + (panel + count) * PanelBytes();
    const int64_t of_panel = panel * groups * kPanelRows;
    if (scales_.empty()) {
      inputs.scales[i] = nullptr;
    } else if (exponents_.empty()) {
      inputs.scales[i] = scales_.data() + of_panel;
    } else {
      inputs.scales[i] = scales_.data() + panel * kPanelRows;
      inputs.exponents[i] = exponents_.data() + of_panel;
    }
  }
}

void ArrangedMatrix::Row(int64_t row, absl::Span<float> out) const {
  for (int64_t col = 0; col < cols_; ++col) out[col] = Get(row, col);
  if (scales_.empty()) return;
  const int64_t groups = (padded_cols() + group_ - 1) / group_;
  for (int64_t col = 0; col < cols_; ++col) {
    const int64_t place = ScalePlace(row, col / group_, groups);
    out[col] *=
        exponents_.empty() ? scales_[place] : scales_[row] * number::PowerOfTwo(exponents_[place]);
  }
}

int64_t ArrangedMatrix::StepBytes() const {
  switch (kind_) {
    case PanelKind::kNibbles:
      return kNibbleStepBytes;
    case PanelKind::kBFloat16:
      return kBFloat16StepBytes;
    case PanelKind::kFloat:
      return kFloatStepBytes;
  }
  __builtin_unreachable();
}

uint8_t* ArrangedMatrix::Step(int64_t row, int64_t col) const {
  return panels_.get() + row / kPanelRows * PanelBytes() + col / kColumnStep * StepBytes();
}

void ArrangedMatrix::PutCode(int64_t row, int64_t col, uint8_t code) {
  const NibblePlace place = kernels_->places[row % kPanelRows][col % kColumnStep];
  Step(row, col)[place.byte] |= static_cast<uint8_t>((code & 0xf) << (place.high ? 4 : 0));
}

void ArrangedMatrix::PutValue(int64_t row, int64_t col, float value) {
  const int64_t r = row % kPanelRows;
  const int64_t c = col % kColumnStep;
  if (kind_ == PanelKind::kFloat) {
    std::memcpy(Step(row, col) + (c * kPanelRows + r) * sizeof(float), &value, sizeof(float));
    return;
  }
  const auto bits = static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
  std::memcpy(Step(row, col) + 64 * (c / 2) + 4 * r + 2 * (c % 2), &bits, sizeof(bits));
}

float ArrangedMatrix::Get(int64_t row, int64_t col) const {
  const int64_t r = row % kPanelRows;
  const int64_t c = col % kColumnStep;
  const uint8_t* step = Step(row, col);
  if (kind_ == PanelKind::kNibbles) {
    const NibblePlace place = kernels_->places[r][c];
    return table_[(step[place.byte] >> (place.high ? 4 : 0)) & 0xf];
  }
  if (kind_ == PanelKind::kFloat) {
    float value;
    std::memcpy(&value, step + (c * kPanelRows + r) * sizeof(float), sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, step + 64 * (c / 2) + 4 * r + 2 * (c % 2), sizeof(bits));
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

}  // namespace nibble
