#include "quant/gptq/scale_search.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "quant/gptq/gptq.h"
#include "tests/quant/gptq/test_util.h"

namespace nibble {
namespace {

constexpr Format kFormats[] = {Format::kE2M1, Format::kE3M0, Format::kE4M3,
                               Format::kE5M2, Format::kInt4, Format::kInt8};
constexpr ScaleConstraint kConstraints[] = {ScaleConstraint::kNone, ScaleConstraint::kM1,
                                            ScaleConstraint::kM2};

at::Tensor Row(std::vector<float> values) { return at::tensor(values).unsqueeze(0); }

// sum_c h_c (w_c - q(w_c; scale))^2 over columns [begin, end) of one row.
double SquaredError(const WeightSpec& spec, const at::Tensor& row, const at::Tensor& h,
                    int64_t begin, int64_t end, float scale) {
  const auto* const weights = row.const_data_ptr<float>();
  const auto* const column_weights = h.const_data_ptr<float>();
  double sum = 0;
  for (int64_t c = begin; c < end; ++c) {
    const uint8_t code = QuantizeWeight(spec, weights[c], scale, 0);
    const float w_hat = DequantizeWeight(spec, code, scale, 0);
    sum += column_weights[c] * std::pow(static_cast<double>(weights[c]) - w_hat, 2);
  }
  return sum;
}

double SquaredError(const at::Tensor& row, const at::Tensor& row_hat, const at::Tensor& h) {
  return (row.to(at::kDouble) - row_hat.to(at::kDouble)).square().mul(h).sum().item<double>();
}

// The least error of a row over the documented candidates, by plain loops.
class Reference {
 public:
  Reference(const WeightSpec& spec, const at::Tensor& row, const at::Tensor& h)
      : spec_(spec), row_(row), h_(h) {
    width_ = GroupWidth(row.size(0), spec.group_size);
    for (int64_t begin = 0; begin < row.size(0); begin += width_) {
      const float largest = row.slice(0, begin, begin + width_).abs().max().item<float>();
      scales_.push_back(std::max(largest / FormatMax(spec.format), kMinScale));
    }
  }

  double Least() const {
    if (spec_.constraint == ScaleConstraint::kM2) return LeastM2();
    double sum = 0;
    for (size_t g = 0; g < scales_.size(); ++g) {
      sum += spec_.constraint == ScaleConstraint::kM1 ? LeastM1(g) : LeastReal(g);
    }
    return sum;
  }

 private:
  double Of(size_t group, float scale) const {
    const auto begin = static_cast<int64_t>(group) * width_;
    return SquaredError(spec_, row_, h_, begin, std::min(begin + width_, row_.size(0)), scale);
  }
  double LeastReal(size_t group) const {
    double least = std::numeric_limits<double>::infinity();
    for (int percent = 50; percent <= 100; percent += 5) {
      const float t = static_cast<float>(percent) / 100;
      least = std::min(least, Of(group, std::max(scales_[group] * t, kMinScale)));
    }
    return least;
  }
  double LeastM1(size_t group) const {
    const auto ceil = [](float scale) { return static_cast<int>(std::ceil(std::log2(scale))); };
    const int most = ceil(*std::max_element(scales_.begin(), scales_.end()));
    double least = std::numeric_limits<double>::infinity();
    for (int e = ceil(scales_[group]) - 2; e <= ceil(scales_[group]) + 1; ++e) {
      const int kept = std::clamp(e, most - kMaxExponentOffset, most);
      least = std::min(least, Of(group, std::exp2(static_cast<float>(kept))));
    }
    return least;
  }
  double LeastM2() const {
    const float most = *std::max_element(scales_.begin(), scales_.end());
    double least = std::numeric_limits<double>::infinity();
    for (int percent = 50; percent <= 100; percent += 5) {
      const float row_scale = std::max(most * (static_cast<float>(percent) / 100), kMinScale);
      double sum = 0;
      for (size_t g = 0; g < scales_.size(); ++g) sum += LeastOffset(g, row_scale);
      least = std::min(least, sum);
    }
    return least;
  }
  double LeastOffset(size_t group, float row_scale) const {
    const double ratio = std::log2(static_cast<double>(row_scale) / scales_[group]);
    double least = std::numeric_limits<double>::infinity();
    for (int k = static_cast<int>(std::floor(ratio)) - 1; k <= std::ceil(ratio) + 1; ++k) {
      const int kept = std::clamp(k, 0, kMaxExponentOffset);
      least = std::min(least, Of(group, std::ldexp(row_scale, -kept)));
    }
    return least;
  }

  const WeightSpec& spec_;
  at::Tensor row_;
  at::Tensor h_;
  int64_t width_ = 0;
  std::vector<float> scales_;
};

at::Tensor Quantized(const at::Tensor& w, const WeightSpec& spec, const at::Tensor& h) {
  const auto quantized = QuantizeRtn("layer", w, spec, h);
  EXPECT_TRUE(quantized.ok()) << quantized.status();
  EXPECT_TRUE(quantized->matrix.Validate("layer").ok());
  return Dequantize(quantized->matrix);
}

// Rows with outliers, groups of very different size, and one row of zeros.
at::Tensor UnevenWeights(int64_t rows, int64_t cols, uint64_t seed) {
  const at::Tensor spread = RandomNormal(rows, (cols + 15) / 16, seed + 1).mul(3).exp2();
  at::Tensor w = RandomNormal(rows, cols, seed) * spread.repeat_interleave(16, 1).slice(1, 0, cols);
  w.select(0, 1).zero_();
  w.select(0, 2).slice(0, 0, 16).mul_(1e-5);
  return w;
}

TEST(RoundTensorTest, IsRoundToFormatOnAllCodesMidpointsAndTheirNeighbours) {
  for (const Format format : kFormats) {
    std::vector<float> values;
    for (int code = 0; code < 1 << FormatBits(format); ++code) {
      const float value = DecodeValue(format, static_cast<uint8_t>(code));
      if (std::isfinite(value)) values.push_back(value);
    }
    std::sort(values.begin(), values.end());
    std::vector<float> points = {0.f, -0.f, 1e-40f, 1e-30f, 3e38f, -3e38f};
    for (size_t i = 0; i < values.size(); ++i) {
      const float middle = i == 0 ? values[0] * 1.01f : (values[i - 1] + values[i]) / 2;
      for (const float point : {values[i], middle}) {
        points.push_back(point);
        points.push_back(std::nextafter(point, 1e30f));
        points.push_back(std::nextafter(point, -1e30f));
      }
    }
    const at::Tensor rounded = RoundTensor(format, at::tensor(points));
    for (size_t i = 0; i < points.size(); ++i) {
      EXPECT_EQ(rounded[static_cast<int64_t>(i)].item<float>(), RoundToFormat(format, points[i]))
          << FormatName(format) << " of " << points[i];
    }
  }
}

TEST(RoundTensorTest, UnderAScaleItIsQuantizeWeight) {
  for (const Format format : kFormats) {
    const WeightSpec spec = Spec(format, 16, ScaleConstraint::kNone);
    const at::Tensor w = RandomNormal(1, 5000, 3).squeeze(0);
    for (const float scale : {0.37f, 0.01f, 0.25f}) {
      const at::Tensor steps = at::full({1}, scale);
      const at::Tensor rounded = RoundTensor(format, w / steps) * steps;
      for (int64_t i = 0; i < w.size(0); ++i) {
        const uint8_t code = QuantizeWeight(spec, w[i].item<float>(), scale, 0);
        ASSERT_EQ(rounded[i].item<float>(), DequantizeWeight(spec, code, scale, 0))
            << FormatName(format) << " of " << w[i].item<float>();
      }
    }
  }
}

// Under S = 1, 6 is exact and 5 rounds to 4; under S = 0.9 and 0.85 both become 6 S.
//   errors of (6, 5):  1: 0, 1   0.95: .09, .49   0.9: .36, .16   0.85: .81, .01   0.8: 1.44, .04
TEST(SearchScalesTest, WeighsTheColumns) {
  const at::Tensor w = Row({6, 5});
  for (const auto constraint : {ScaleConstraint::kNone, ScaleConstraint::kM2}) {
    const WeightSpec spec = Spec(Format::kE2M1, 16, constraint);
    const auto scale = [&](float h0, float h1) {
      return SearchScales(spec, w, at::tensor({h0, h1})).scale.item<float>();
    };
    EXPECT_FLOAT_EQ(scale(1, 1), 0.9f);
    EXPECT_FLOAT_EQ(scale(10, 1), 1);
    EXPECT_FLOAT_EQ(scale(1, 10), 0.85f);
    EXPECT_FLOAT_EQ(scale(0, 0), 1);  // of equal errors, what no search gives
  }
}

// S_g = 3.1 / 6 rounds up to 2^0, under which 0.25 becomes 0; under 2^-1 it is exact, and 3.1
// becomes 3 under both.
TEST(SearchScalesTest, TakesTheSmallerPowerOfTwo) {
  const WeightSpec spec = Spec(Format::kE2M1, 16, ScaleConstraint::kM1);
  const MatrixScales scales = SearchScales(spec, Row({3.1f, 0.25f}), at::ones({2}));
  EXPECT_EQ(scales.exponent.item<int8_t>(), -1);
  EXPECT_EQ(scales.scale.item<float>(), 0.5f);
}

TEST(SearchScalesTest, ErrsNoMoreThanWithoutAndAsLittleAsPlainLoopsFind) {
  constexpr uint64_t kSeed = 41;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  const at::Tensor w = UnevenWeights(6, 88, kSeed);
  const at::Tensor h = RandomNormal(1, 88, kSeed + 7).squeeze(0).square();
  for (const Format format : kFormats) {
    for (const ScaleConstraint constraint : kConstraints) {
      for (const int group_size : {16, 32, kWholeRow}) {
        WeightSpec spec = Spec(format, group_size, constraint);
        SCOPED_TRACE(testing::Message() << FormatName(format) << ' '
                                        << ScaleConstraintName(constraint) << ' ' << group_size);
        const at::Tensor searched = Quantized(w, spec, h);
        for (int64_t row = 0; row < w.size(0); ++row) {
          const double error = SquaredError(w[row], searched[row], h);
          const double least = Reference(spec, w[row], h).Least();
          EXPECT_NEAR(error, least, 1e-5 * least) << "row " << row;
        }
        for (const auto rounding : {M2Rounding::kCeil, M2Rounding::kFloor, M2Rounding::kMse}) {
          spec.rounding = rounding;
          const at::Tensor plain = Quantized(w, spec, {});
          for (int64_t row = 0; row < w.size(0); ++row) {
            EXPECT_LE(SquaredError(w[row], searched[row], h),
                      (1 + 1e-5) * SquaredError(w[row], plain[row], h))
                << "row " << row;
          }
        }
      }
    }
  }
}

TEST(SearchScalesTest, RowsDoNotDependOnTheirNeighbours) {
  const int threads = at::get_num_threads();
  at::set_num_threads(1);  // others wait for each other at each of many small steps
  // Two pieces of the rows that are searched at a time.
  const int64_t cols = kScaleSearchValues / 2 + 16;
  const at::Tensor w = RandomNormal(2, cols, 5);
  const WeightSpec spec = Spec(Format::kE2M1, 64, ScaleConstraint::kM2);
  const MatrixScales both = SearchScales(spec, w, at::ones({cols}));
  for (int64_t row = 0; row < 2; ++row) {
    const MatrixScales one = SearchScales(spec, w.slice(0, row, row + 1), at::ones({cols}));
    EXPECT_TRUE(both.scale[row].equal(one.scale[0])) << row;
    EXPECT_TRUE(both.exponent[row].equal(one.exponent[0])) << row;
    EXPECT_TRUE(both.row_scale[row].equal(one.row_scale[0])) << row;
  }
  at::set_num_threads(threads);
}

TEST(SearchScalesTest, CountsGroupsFarBelowTheirRow) {
  at::Tensor w = at::ones({1, 48});
  w.slice(1, 16, 32).mul_(1e-5);
  w.slice(1, 32, 48).zero_();
  for (const auto constraint : {ScaleConstraint::kM1, ScaleConstraint::kM2}) {
    const WeightSpec spec = Spec(Format::kE2M1, 16, constraint);
    EXPECT_EQ(SearchScales(spec, w, at::ones({48})).clamped.item<int32_t>(), 2);
  }
}

TEST(SearchScalesTest, LargeWeightsDoNotOverflowIntoNoScale) {
  const WeightSpec spec = Spec(Format::kE2M1, 16, ScaleConstraint::kM2);
  const MatrixScales scales =
      SearchScales(spec, Row({3e38f, 2e38f, 1.f}), at::tensor({0.f, 1e30f, 1.f}));
  EXPECT_TRUE(scales.row_scale.isfinite().all().item<bool>());
  EXPECT_GT(scales.row_scale.item<float>(), 0);
}

// Where inputs are uncorrelated: elsewhere the diagonal is only a part of what GPTQ minimizes.
TEST(SearchScalesTest, LowersGptqsOutputErrorOfUncorrelatedInputs) {
  constexpr uint64_t kSeed = 17;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  const at::Tensor x = RandomNormal(2048, 128, kSeed) * RandomNormal(1, 128, kSeed + 2).exp();
  const at::Tensor h = x.t().mm(x);
  const at::Tensor w = RandomWeights(64, 128, kSeed + 1);
  const GptqOptions options;
  const GptqFactor factor = FactorHessian("layer", h, options).value();
  for (const ScaleConstraint constraint : kConstraints) {
    const WeightSpec spec = Spec(Format::kE2M1, 32, constraint);
    const auto error = [&](const at::Tensor& column_weights) {
      const auto quantized = QuantizeGptq("layer", w, factor, spec, options, column_weights);
      return RelativeOutputError(w, Dequantize(quantized.value().matrix), h);
    };
    EXPECT_LT(error(h.diagonal()), error({})) << ScaleConstraintName(constraint);
  }
}

TEST(SearchScalesTest, WhatCannotBeSearchedIsRefused) {
  const at::Tensor w = RandomWeights(4, 32, 1);
  const WeightSpec spec = Spec(Format::kInt4, 16, ScaleConstraint::kNone);
  WeightSpec asymmetric = spec;
  asymmetric.asymmetric = true;
  const at::Tensor ones = at::ones({32});
  ExpectRefused(QuantizeRtn("layer", w, asymmetric, ones).status(), "layer: found asymmetric");
  ExpectRefused(QuantizeRtn("layer", w, spec, at::ones({31})).status(), "found 31 column weights");
  ExpectRefused(QuantizeRtn("layer", w, spec, -ones).status(), "at least 0");
  ExpectRefused(QuantizeRtn("layer", w, spec, ones / 0).status(), "finite");
  GptqOptions natural;
  natural.act_order = false;
  const GptqFactor factor = FactorHessian("layer", CorrelatedHessian(32, 2), natural).value();
  ExpectRefused(QuantizeGptq("layer", w, factor, spec, natural, ones).status(),
                "layer: found natural order");
}

}  // namespace
}  // namespace nibble
