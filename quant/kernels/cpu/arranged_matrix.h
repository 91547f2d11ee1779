// A weight matrix as the CPU's kernels multiply it: panels of 16 output rows, laid out for this
// machine's instructions.
#pragma once

#include <array>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "quant/formats/formats.h"
#include "quant/kernels/cpu/isa.h"
#include "quant/kernels/cpu/tile.h"

namespace nibble {

// Immutable. What is multiplied is exactly what came in: `Row` gives it back.
//
// - 4 bits, symmetric: codes, 4 bits a weight, and a scale a group (f32; M2: one byte)
// - other quantized weights: bf16, unscaled, 16 bits; every value of a format is one
// - values that are all bf16 and each 0 or at least 2^-100: bf16, 16 bits
// - other values: f32, 32 bits
class ArrangedMatrix {
 public:
  static ArrangedMatrix FromQuantized(const QuantizedMatrix& matrix, Isa isa = ActiveIsa());
  // values: [rows, cols].
  static ArrangedMatrix FromValues(absl::Span<const float> values, int64_t rows, int64_t cols,
                                   Isa isa = ActiveIsa());

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  PanelKind kind() const { return kind_; }
  const TileKernels& kernels() const { return *kernels_; }
  int64_t panel_count() const { return (rows_ + kPanelRows - 1) / kPanelRows; }
  // Columns of `x` that a kernel reads: cols() rounded up, zeros after the last.
  int64_t padded_cols() const { return (cols_ + kColumnStep - 1) / kColumnStep * kColumnStep; }
  int64_t bytes() const;
  // The stored panels, one after the other.
  absl::Span<const uint8_t> panels() const {
    return {panels_.get(), static_cast<size_t>(panel_count() * PanelBytes())};
  }

  // Everything of `inputs` that is the matrix's, for panels first_panel .. first_panel + count - 1.
  // The panels behind them are announced as the next ones.
  void Describe(int64_t first_panel, int count, TileInputs& inputs) const;
  // True values of one row into out[cols].
  void Row(int64_t row, absl::Span<float> out) const;

 private:
  struct Free {
    void operator()(uint8_t* bytes) const { std::free(bytes); }
  };

  ArrangedMatrix(PanelKind kind, int64_t rows, int64_t cols, int64_t group, Isa isa);
  int64_t StepBytes() const;
  int64_t PanelBytes() const { return padded_cols() / kColumnStep * StepBytes(); }
  uint8_t* Step(int64_t row, int64_t col) const;
  void PutCode(int64_t row, int64_t col, uint8_t code);
  void PutValue(int64_t row, int64_t col, float value);
  float Get(int64_t row, int64_t col) const;

  PanelKind kind_;
  int64_t rows_;
  int64_t cols_;
  int64_t group_;
  const TileKernels* kernels_;
  std::unique_ptr<uint8_t[], Free> panels_;
  std::vector<float> scales_;         // [panels, groups, 16], with exponents [panels, 16]; empty: 1
  std::vector<int8_t> exponents_;     // [panels, groups, 16], of M2
  std::array<float, 16> table_ = {};  // kNibbles
};

}  // namespace nibble
