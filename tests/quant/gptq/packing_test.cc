#include "quant/gptq/packing.h"

#include <gtest/gtest.h>

#include "tests/quant/gptq/test_util.h"

namespace nibble {
namespace {

// Odd columns, an odd number of groups, a short last one.
constexpr int64_t kRows = 5, kCols = 81;

TEST(PackMatrixTest, PacksAsRowsDo) {
  const at::Tensor w = RandomWeights(kRows, kCols, 11).contiguous();
  for (const WeightSpec& spec : {Spec(Format::kE2M1, 16, ScaleConstraint::kM2),
                                 Spec(Format::kE4M3, 16, ScaleConstraint::kM1),
                                 WeightSpec{Format::kInt4, true, 64, ScaleConstraint::kNone}}) {
    const QuantizedLinear expected = QuantizeRtn("layer", w, spec).value();
    // The same codes and scales as tensors.
    at::Tensor codes = at::empty({kRows, kCols}, at::kByte);
    const MatrixScales scales = EmptyScales(spec, kRows, kCols, at::kCPU);
    for (int64_t row = 0; row < kRows; ++row) {
      const auto values = absl::MakeConstSpan(w.const_data_ptr<float>() + row * kCols, kCols);
      const RowScales row_scales = ComputeRowScales(spec, values);
      for (int64_t c = 0; c < kCols; ++c) {
        const int64_t group = c / spec.group_size;
        codes[row][c] = QuantizeWeight(spec, values[c], row_scales.scale[group],
                                       spec.asymmetric ? row_scales.zero[group] : 0);
      }
      for (int64_t g = 0; g < expected.matrix.groups(); ++g) {
        scales.scale[row][g] = row_scales.scale[g];
        if (spec.asymmetric) scales.zero[row][g] = row_scales.zero[g];
        if (spec.constraint != ScaleConstraint::kNone)
          scales.exponent[row][g] = row_scales.exponent[g];
      }
      if (spec.constraint == ScaleConstraint::kM2) scales.row_scale[row] = row_scales.row_scale;
      scales.clamped[row] = row_scales.clamped;
    }
    const QuantizedLinear packed = PackMatrix(spec, codes, scales);
    EXPECT_EQ(packed.matrix.codes, expected.matrix.codes);
    EXPECT_EQ(packed.matrix.scale, expected.matrix.scale);
    EXPECT_EQ(packed.matrix.exponent, expected.matrix.exponent);
    EXPECT_EQ(packed.matrix.row_scale, expected.matrix.row_scale);
    EXPECT_EQ(packed.matrix.k, expected.matrix.k);
    EXPECT_EQ(packed.matrix.zero, expected.matrix.zero);
    EXPECT_EQ(packed.clamped_groups, expected.clamped_groups);
  }
}

}  // namespace
}  // namespace nibble
