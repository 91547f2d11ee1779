#include "quant/gptq/gptq.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "tests/quant/gptq/test_util.h"

namespace nibble {
namespace {

constexpr ScaleConstraint kNone = ScaleConstraint::kNone;
constexpr ScaleConstraint kM1 = ScaleConstraint::kM1;
constexpr ScaleConstraint kM2 = ScaleConstraint::kM2;

GptqOptions Natural() {
  GptqOptions options;
  options.act_order = false;
  return options;
}

// So small that hand-computed factors hold.
GptqOptions Undamped(GptqOptions options) {
  options.damping = 1e-12;
  return options;
}

QuantizedLinear Solve(const at::Tensor& w, const at::Tensor& hessian, const WeightSpec& spec,
                      const GptqOptions& options) {
  const auto factor = FactorHessian("layer", hessian, options);
  EXPECT_TRUE(factor.ok()) << factor.status();
  auto result = QuantizeGptq("layer", w, *factor, spec, options);
  EXPECT_TRUE(result.ok()) << result.status();
  return *std::move(result);
}

std::vector<int> Codes(const QuantizedMatrix& matrix, int64_t row) {
  const int64_t stride = static_cast<int64_t>(matrix.codes.size()) / matrix.rows;
  const auto codes =
      UnpackCodes(matrix.spec.format,
                  absl::MakeConstSpan(matrix.codes).subspan(row * stride, stride), matrix.cols);
  return {codes.begin(), codes.end()};
}

// Two columns: column 0's error e moves column 1 by e * H01 / H11.
TEST(QuantizeGptqTest, NaturalOrderByHand) {
  // Columns {0, 1} and {2, 3} are correlated. 2.4 -> 2 moves 3.4 by 0.4 / 2 to 3.6 -> 4;
  // 1.3 -> 1 moves 7 by 0.3 * 2 / 2 to 7.3 -> 7. Below: 0.6 -> 1 moves nothing; -1.6 -> -2 moves
  // 2.3 by 0.4 to 2.7 -> 3. The scales are 7 / 7.
  const at::Tensor h = at::tensor({2.f, 1.f, 0.f, 0.f, 1.f, 2.f, 0.f, 0.f,  //
                                   0.f, 0.f, 4.f, 2.f, 0.f, 0.f, 2.f, 2.f})
                           .view({4, 4});
  const at::Tensor w = at::tensor({2.4f, 3.4f, 1.3f, 7.f, -7.f, 0.6f, -1.6f, 2.3f}).view({2, 4});
  const QuantizedLinear result =
      Solve(w, h, Spec(Format::kInt4, kWholeRow, kNone), Undamped(Natural()));
  EXPECT_EQ(Codes(result.matrix, 0), (std::vector<int>{2, 4, 1, 7}));
  EXPECT_EQ(Codes(result.matrix, 1), (std::vector<int>{16 - 7, 1, 16 - 2, 3}));
  EXPECT_EQ(result.damping_escalations, 0);
}

TEST(QuantizeGptqTest, ActOrderTakesColumnsByFallingDiagonal) {
  // Natural: 2.4 -> 2 moves 3.45 by 0.4 * 1 / 4 to 3.55 -> 4.
  // By falling diagonal column 1 comes first: 3.45 -> 3 moves 2.4 by 0.45 * 1 / 2 to 2.625 -> 3.
  const at::Tensor h = at::tensor({2.f, 1.f, 0.f, 1.f, 4.f, 0.f, 0.f, 0.f, 1.f}).view({3, 3});
  const at::Tensor w = at::tensor({2.4f, 3.45f, 7.f}).view({1, 3});
  const WeightSpec spec = Spec(Format::kInt4, kWholeRow, kNone);
  EXPECT_EQ(Codes(Solve(w, h, spec, Undamped(Natural())).matrix, 0), (std::vector<int>{2, 4, 7}));
  EXPECT_EQ(Codes(Solve(w, h, spec, Undamped({})).matrix, 0), (std::vector<int>{3, 3, 7}));
  const auto factor = FactorHessian("layer", h, GptqOptions());
  ASSERT_TRUE(factor.ok());
  EXPECT_TRUE(factor->order.equal(at::tensor({1, 0, 2}, at::kLong)));
}

TEST(QuantizeGptqTest, EqualDiagonalsKeepTheirOrder) {
  const auto factor = FactorHessian("layer", at::eye(64), GptqOptions());
  ASSERT_TRUE(factor.ok());
  EXPECT_TRUE(factor->order.equal(at::arange(64, at::kLong)));
}

// 32 columns in two groups; columns 15 and 16 are correlated: 15's error moves 16 by half of it.
struct TwoGroups {
  at::Tensor w = at::zeros({1, 32});
  at::Tensor h = at::eye(32);
  TwoGroups(float w0, float w15, float w16) {
    w[0][0] = w0;
    w[0][15] = w15;
    w[0][16] = w16;
    h[15][15] = 2;
    h[16][16] = 2;
    h[15][16] = 1;
    h[16][15] = 1;
  }
};

TEST(QuantizeGptqTest, NaturalOrderScalesComeFromUpdatedWeights) {
  const TwoGroups t(7, 2.4f, 6.8f);  // 2.4 -> 2 moves 6.8 to 7.0
  const WeightSpec spec = Spec(Format::kInt4, 16, kNone);
  const QuantizedLinear natural = Solve(t.w, t.h, spec, Undamped(Natural()));
  EXPECT_FLOAT_EQ(natural.matrix.scale[0], 1);
  EXPECT_NEAR(natural.matrix.scale[1], 1, 1e-6);  // f32 arithmetic on numbers below 8
  const QuantizedLinear act_order = Solve(t.w, t.h, spec, Undamped({}));
  EXPECT_EQ(act_order.matrix.scale[1], 6.8f / 7);
}

TEST(QuantizeGptqTest, NaturalOrderM2TakesTheOffsetFromUpdatedWeights) {
  // S_row = 1. Column 16: 2.9, S_g = 0.483, log2(1 / S_g) = 1.05; updated by (2.4 - 2) / 2 to 3.1,
  // S_g = 0.517, log2 = 0.95: rounded up, 2 and 1.
  const TwoGroups t(6, 2.4f, 2.9f);
  const WeightSpec spec = Spec(Format::kE2M1, 16, kM2, M2Rounding::kCeil);
  EXPECT_EQ(Solve(t.w, t.h, spec, Undamped(Natural())).matrix.GroupScaleAt(0, 1), 0.5f);
  EXPECT_EQ(Solve(t.w, t.h, spec, Undamped({})).matrix.GroupScaleAt(0, 1), 0.25f);
}

TEST(QuantizeGptqTest, NaturalOrderM2OffsetBelowZeroIsZero) {
  // Column 16 grows from 6 to 6.2: its scale is above S_row = 1 and would need k = -1.
  const TwoGroups t(6, 2.4f, 6);
  const QuantizedLinear result =
      Solve(t.w, t.h, Spec(Format::kE2M1, 16, kM2, M2Rounding::kFloor), Undamped(Natural()));
  EXPECT_EQ(result.matrix.GroupScaleAt(0, 1), 1);
  EXPECT_EQ(result.clamped_groups, 1);
  EXPECT_EQ(Codes(result.matrix, 0)[16], 7);
}

// Optimal brain surgery in double precision, column by column, with neither Cholesky factor nor
// blocks. It follows the codes under test, so that one rounding near a midpoint does not set every
// later column apart: each code must be the one nearest to the reference's weight up to
// `kTolerance` steps, and each scale that of the reference's weights.
class NaturalOrderReference : public testing::Test {
 protected:
  // f32 against double: a few hundred updates of numbers below 8 at 6e-8 relative each.
  static constexpr double kTolerance = 2e-4;

  void Check(const WeightSpec& spec, int64_t rows, int64_t cols, int64_t block_columns,
             uint64_t seed) {
    SCOPED_TRACE(testing::Message() << FormatName(spec.format) << " group " << spec.group_size
                                    << " " << ScaleConstraintName(spec.constraint) << " cols "
                                    << cols << " block " << block_columns << " seed " << seed);
    const at::Tensor h = CorrelatedHessian(cols, seed);
    const at::Tensor w = RandomWeights(rows, cols, seed + 1);
    GptqOptions options = Natural();
    options.block_columns = block_columns;
    const QuantizedLinear result = Solve(w, h, spec, options);
    const std::vector<std::vector<double>> eliminated = EliminatedInverse(h, options.damping);
    groups_ = other_offsets_ = 0;
    for (int64_t row = 0; row < rows; ++row) CheckRow(result.matrix, w, row, eliminated);
    // The rounding of an exponent may differ where f32 and double are on different sides of it.
    EXPECT_LE(other_offsets_, groups_ / 100);
  }

 private:
  // Row j: row j of the inverse of the damped H with the columns before j eliminated.
  static std::vector<std::vector<double>> EliminatedInverse(const at::Tensor& h, double damping) {
    const int64_t n = h.size(0);
    at::Tensor damped = h.to(at::kDouble);
    damped.diagonal().add_(damping * damped.diagonal().mean().item<double>());
    const at::Tensor inverse = at::inverse(damped).contiguous();
    std::vector<std::vector<double>> rows(n);
    for (int64_t i = 0; i < n; ++i) {
      const double* p = inverse.const_data_ptr<double>() + i * n;
      rows[i].assign(p, p + n);
    }
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t i = j + 1; i < n; ++i) {
        const double ratio = rows[i][j] / rows[j][j];
        for (int64_t t = j + 1; t < n; ++t) rows[i][t] -= ratio * rows[j][t];
      }
    }
    return rows;
  }

  // The scale that the reference's weights give; counts an exponent that differs.
  void CheckScale(const QuantizedMatrix& matrix, int64_t row, int64_t group, RowScales& scales,
                  const std::vector<double>& w) {
    const int64_t width = GroupWidth(matrix.cols, matrix.spec.group_size);
    const int64_t end = std::min(matrix.cols, (group + 1) * width);
    const std::vector<float> values(w.begin() + group * width, w.begin() + end);
    UpdateGroupScale(matrix.spec, values, group, scales);
    const float found = matrix.GroupScaleAt(row, group);
    ++groups_;
    if (matrix.spec.constraint == kNone) {
      ASSERT_NEAR(found / scales.scale[group], 1, 1e-4) << "row " << row << " group " << group;
    } else if (found != scales.scale[group]) {
      ++other_offsets_;
    }
  }

  void CheckRow(const QuantizedMatrix& matrix, const at::Tensor& weights, int64_t row,
                const std::vector<std::vector<double>>& eliminated) {
    const WeightSpec& spec = matrix.spec;
    const int64_t cols = matrix.cols;
    const int64_t width = GroupWidth(cols, spec.group_size);
    const float* original = weights.const_data_ptr<float>() + row * cols;
    std::vector<double> w(original, original + cols);
    RowScales scales = ComputeRowScales(spec, absl::MakeConstSpan(original, cols));
    std::vector<float> values(cols);
    matrix.DequantizeRow(row, absl::MakeSpan(values));
    for (int64_t j = 0; j < cols; ++j) {
      const int64_t group = j / width;
      if (j % width == 0) CheckScale(matrix, row, group, scales, w);
      const float scale = matrix.GroupScaleAt(row, group);
      const uint8_t zero = spec.asymmetric ? matrix.zero[row * matrix.groups() + group] : 0;
      const uint8_t nearest = QuantizeWeight(spec, static_cast<float>(w[j]), scale, zero);
      const double best = std::fabs(w[j] - DequantizeWeight(spec, nearest, scale, zero));
      const double step = scale * std::max(1.0, std::fabs(w[j] / scale) / 8);
      ASSERT_LE(std::fabs(w[j] - values[j]), best + kTolerance * step)
          << "row " << row << " column " << j << ": " << w[j] << " became " << values[j];
      const double error = (w[j] - values[j]) / eliminated[j][j];
      for (int64_t t = j; t < cols; ++t) w[t] -= error * eliminated[j][t];
    }
  }

  int64_t groups_ = 0;
  int64_t other_offsets_ = 0;
};

TEST_F(NaturalOrderReference, EveryGroupSizeInsideAndAcrossBlocks) {
  for (const int group : {16, 64, 128, 256, kWholeRow}) {  // 300: the last group is short
    Check(Spec(Format::kE2M1, group, kM2), 16, 300, 128, 100 + group);
  }
}

TEST_F(NaturalOrderReference, GroupOf1024WithAShortLastGroup) {
  Check(Spec(Format::kE2M1, 1024, kNone), 4, 1088, 128, 7);
}

TEST_F(NaturalOrderReference, GroupsThatBeginInsideABlockAndReachBeyondIt) {
  Check(Spec(Format::kE2M1, 64, kNone), 16, 300, 100, 11);
  Check(Spec(Format::kE2M1, 256, kM2), 16, 600, 100, 12);
}

TEST_F(NaturalOrderReference, OtherFormatsAndConstraints) {
  WeightSpec asymmetric = Spec(Format::kInt4, 32, kNone);
  asymmetric.asymmetric = true;
  Check(asymmetric, 16, 200, 128, 21);
  Check(Spec(Format::kE3M0, 32, kM2, M2Rounding::kCeil), 16, 200, 128, 22);
  Check(Spec(Format::kE4M3, 32, kM1), 16, 200, 128, 23);
  Check(Spec(Format::kInt8, 32, kM2, M2Rounding::kFloor), 16, 200, 128, 24);
}

// Act-order is natural order on permuted columns when one scale serves the whole row.
TEST(QuantizeGptqTest, ActOrderEqualsNaturalOrderOfPermutedColumns) {
  const uint64_t seed = 31;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  const at::Tensor h = CorrelatedHessian(200, seed);
  const at::Tensor w = RandomWeights(16, 200, seed + 1);
  const WeightSpec spec = Spec(Format::kE2M1, kWholeRow, kNone);
  const auto factor = FactorHessian("layer", h, GptqOptions());
  ASSERT_TRUE(factor.ok());
  const at::Tensor order = factor->order;
  const at::Tensor diagonal = h.diagonal().index_select(0, order);
  EXPECT_TRUE(diagonal.slice(0, 1).le(diagonal.slice(0, 0, 199)).all().item<bool>());
  EXPECT_FALSE(order.equal(at::arange(200, at::kLong)));

  const at::Tensor act = Dequantize(Solve(w, h, spec, {}).matrix);
  const at::Tensor permuted_h = h.index_select(0, order).index_select(1, order);
  const at::Tensor natural =
      Dequantize(Solve(w.index_select(1, order), permuted_h, spec, Natural()).matrix);
  EXPECT_TRUE(act.index_select(1, order).equal(natural));
}

// In act-order every group has the scale that round-to-nearest gives it.
TEST(QuantizeGptqTest, ActOrderScalesAreThoseOfTheOriginalWeights) {
  const at::Tensor h = CorrelatedHessian(200, 41);
  const at::Tensor w = RandomWeights(16, 200, 42);
  const WeightSpec spec = Spec(Format::kE2M1, 32, kM2);
  const QuantizedLinear gptq = Solve(w, h, spec, {});
  const auto rtn = QuantizeRtn("layer", w, spec);
  ASSERT_TRUE(rtn.ok());
  EXPECT_EQ(gptq.matrix.row_scale, rtn->matrix.row_scale);
  EXPECT_EQ(gptq.matrix.k, rtn->matrix.k);
  EXPECT_NE(gptq.matrix.codes, rtn->matrix.codes);
}

// The reason for GPTQ: on correlated inputs its output error is at most 0.6 of round-to-nearest's.
TEST(QuantizeGptqTest, BeatsRoundToNearestOnCorrelatedInputs) {
  const uint64_t seed = 51;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  const at::Tensor h = CorrelatedHessian(256, seed);
  const at::Tensor w = RandomWeights(64, 256, seed + 1);
  WeightSpec int4 = Spec(Format::kInt4, 64, kNone);
  int4.asymmetric = true;
  for (const WeightSpec& spec : {Spec(Format::kE2M1, 64, kM2), Spec(Format::kE2M1, 64, kNone),
                                 Spec(Format::kE3M0, 64, kNone), int4}) {
    const auto rtn = QuantizeRtn("layer", w, spec);
    ASSERT_TRUE(rtn.ok());
    const double rtn_error = RelativeOutputError(w, Dequantize(rtn->matrix), h);
    for (const GptqOptions& options : {GptqOptions(), Natural()}) {
      const QuantizedLinear gptq = Solve(w, h, spec, options);
      const double error = RelativeOutputError(w, Dequantize(gptq.matrix), h);
      EXPECT_LT(error, 0.6 * rtn_error)
          << FormatName(spec.format) << (options.act_order ? " act-order" : " natural");
    }
  }
}

TEST(QuantizeGptqTest, UncorrelatedInputsGiveRoundToNearest) {
  const at::Tensor w = RandomWeights(8, 96, 61);
  const WeightSpec spec = Spec(Format::kE2M1, 32, kM2);
  const auto rtn = QuantizeRtn("layer", w, spec);
  ASSERT_TRUE(rtn.ok());
  const QuantizedLinear gptq = Solve(w, at::eye(96), spec, Natural());
  EXPECT_EQ(gptq.matrix.codes, rtn->matrix.codes);
  EXPECT_EQ(gptq.matrix.k, rtn->matrix.k);
}

TEST(QuantizeGptqTest, IsDeterministic) {
  const at::Tensor h = CorrelatedHessian(300, 71);
  const at::Tensor w = RandomWeights(64, 300, 72);
  const WeightSpec spec = Spec(Format::kE2M1, 64, kM2);
  EXPECT_EQ(Solve(w, h, spec, {}).matrix.codes, Solve(w, h, spec, {}).matrix.codes);
}

TEST(QuantizeGptqTest, DeadInputsGetWeightZero) {
  at::Tensor h = CorrelatedHessian(64, 81);
  for (const int64_t column : {0, 17, 63}) {
    h.select(0, column).zero_();
    h.select(1, column).zero_();
  }
  at::Tensor w = RandomWeights(4, 64, 82);
  w.select(1, 17).fill_(100);  // would set the scale of its group
  const WeightSpec spec = Spec(Format::kE2M1, 16, kNone);
  for (const GptqOptions& options : {GptqOptions(), Natural()}) {
    const QuantizedLinear result = Solve(w, h, spec, options);
    const at::Tensor w_hat = Dequantize(result.matrix);
    for (const int64_t column : {0, 17, 63}) {
      EXPECT_EQ(w_hat.select(1, column).abs().max().item<float>(), 0) << column;
    }
    EXPECT_LT(result.matrix.GroupScaleAt(0, 1), 2) << "scale of the group with the dead column";
  }
}

TEST(QuantizeGptqTest, RefusesBadInputWithTheLayersName) {
  const auto factor = FactorHessian("layers.3.o_proj", at::eye(32), GptqOptions());
  ASSERT_TRUE(factor.ok());
  const WeightSpec spec = Spec(Format::kE2M1, 16, kM2);
  at::Tensor w = RandomWeights(2, 32, 91);
  w[1][5] = std::numeric_limits<float>::quiet_NaN();
  ExpectRefused(QuantizeGptq("layers.3.o_proj", w, *factor, spec, {}).status(),
                "layers.3.o_proj: value 37 is nan");
  w[1][5] = std::numeric_limits<float>::infinity();
  ExpectRefused(QuantizeRtn("layers.3.o_proj", w, spec).status(),
                "layers.3.o_proj: value 37 is inf");
  ExpectRefused(
      QuantizeGptq("layers.3.o_proj", RandomWeights(2, 16, 1), *factor, spec, {}).status(),
      "layers.3.o_proj: the Hessian's factor");
  ExpectRefused(
      QuantizeRtn("layers.3.o_proj", RandomWeights(2, 16, 1), Spec(Format::kE2M1, 0, kM2)).status(),
      "layers.3.o_proj: group_size: found 0");
  ExpectRefused(QuantizeRtn("layers.3.o_proj", at::zeros({4}), spec).status(),
                "layers.3.o_proj: weight has 1 dimensions");
  GptqOptions no_block;
  no_block.block_columns = 0;
  ExpectRefused(
      QuantizeGptq("layers.3.o_proj", RandomWeights(2, 32, 1), *factor, spec, no_block).status(),
      "block_columns is 0");
}

// Column 0's rounding error of 1.4e37 moves column 1 by 999 times that, beyond the largest float.
TEST(QuantizeGptqTest, OverflowFailsWithTheLayersName) {
  const at::Tensor h = at::tensor({1e6f, 999.f, 0.f, 999.f, 1.f, 0.f, 0.f, 0.f, 1.f}).view({3, 3});
  const auto factor = FactorHessian("layers.3.o_proj", h, Undamped(Natural()));
  ASSERT_TRUE(factor.ok());
  const absl::Status status =
      QuantizeGptq("layers.3.o_proj", at::tensor({1e38f, 0.f, 3e38f}).view({1, 3}), *factor,
                   Spec(Format::kInt4, kWholeRow, kNone), Undamped(Natural()))
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_NE(std::string(status.message()).find("layers.3.o_proj"), std::string::npos);
}

TEST(QuantizeRtnTest, RoundsEveryWeightUnderItsOwnScale) {
  const at::Tensor w = at::tensor({6.f, -0.8f, 2.4f, 0.f, 0.2f, 3.2f}).view({2, 3});
  const auto result = QuantizeRtn("layer", w, Spec(Format::kE2M1, kWholeRow, kNone));
  ASSERT_TRUE(result.ok());
  // Scales 1 and 3.2 / 6; 0.2 / (3.2 / 6) = 0.375 -> 0.5.
  EXPECT_TRUE(Dequantize(result->matrix)
                  .allclose(at::tensor({6.f, -1.f, 2.f, 0.f, 1.6f / 6, 3.2f}).view({2, 3}), 1e-6));
  EXPECT_EQ(result->damping, 0);
}

}  // namespace
}  // namespace nibble
