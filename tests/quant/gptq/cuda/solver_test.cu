// Runs on a GPU only. The oracle is the CPU's solver: given the same factor and the same weights,
// scales, codes and errors of a block are equal to the bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "quant/gptq/cuda/solver.h"
#include "quant/gptq/solver.h"
#include "tests/quant/kernels/cuda/device_array.h"

namespace nibble {
namespace {

std::vector<WeightSpec> AllSpecs() {
  std::vector<WeightSpec> specs;
  for (const int group : {16, 64, 256, kWholeRow}) {
    for (const Format format : {Format::kE2M1, Format::kE3M0, Format::kE4M3, Format::kE5M2,
                                Format::kInt4, Format::kInt8}) {
      specs.push_back({format, false, group, ScaleConstraint::kNone});
      specs.push_back({format, false, group, ScaleConstraint::kM1});
      for (const M2Rounding rounding : {M2Rounding::kCeil, M2Rounding::kFloor, M2Rounding::kMse}) {
        specs.push_back({format, false, group, ScaleConstraint::kM2, rounding});
      }
      if (IsInteger(format)) specs.push_back({format, true, group, ScaleConstraint::kNone});
    }
  }
  return specs;
}

// Weights whose size changes along the row, so that M1 and M2 clamp, and an upper factor.
class SolverTest : public testing::TestWithParam<bool> {
 protected:
  static constexpr int64_t kRows = 37;
  static constexpr int64_t kCols = 300;

  bool natural() const { return GetParam(); }
  ScaleSource source() const {
    return natural() ? ScaleSource::kUpdatedWeights : ScaleSource::kOriginalWeights;
  }

  void SetUp() override {
    const uint32_t seed = std::random_device{}();
    RecordProperty("seed", static_cast<int>(seed));
    std::printf("seed %u\n", seed);
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < kRows * kCols; ++i) {
      original_.push_back(normal(random) * std::exp2(static_cast<float>(i / 40 % 17) - 8.f));
    }
    std::fill_n(original_.begin() + kCols, 70, 0.f);  // a group of zeros
    for (int64_t i = 0; i < kCols; ++i) {
      hinv_[i * kCols + i] = 0.5f + std::fabs(normal(random));
      for (int64_t j = i + 1; j < kCols; ++j) hinv_[i * kCols + j] = 0.05f * normal(random);
    }
    std::iota(order_.begin(), order_.end(), 0);
    if (!natural()) std::shuffle(order_.begin(), order_.end(), random);
    for (int64_t row = 0; row < kRows; ++row) {
      for (const int64_t column : order_) weights_.push_back(original_[row * kCols + column]);
    }
  }

  std::vector<float> original_;  // [kRows, kCols]
  std::vector<float> weights_;   // in the order of the solve
  std::vector<float> hinv_ = std::vector<float>(kCols * kCols);
  std::vector<int64_t> order_ = std::vector<int64_t>(kCols);
};

// DeviceRowScales and the memory it points to.
struct ScaleArrays {
  ScaleArrays(int64_t rows, int64_t groups)
      : scale(rows * groups),
        zero(rows * groups),
        row_scale(rows),
        exponent(rows * groups),
        clamped(rows) {}
  DeviceRowScales Pointers(const WeightSpec& spec) {
    return {.scale = scale.data(),
            .zero = spec.asymmetric ? zero.data() : nullptr,
            .row_scale = spec.constraint == ScaleConstraint::kM2 ? row_scale.data() : nullptr,
            .exponent = spec.constraint != ScaleConstraint::kNone ? exponent.data() : nullptr,
            .clamped = clamped.data()};
  }
  DeviceArray<float> scale;
  DeviceArray<uint8_t> zero;
  DeviceArray<float> row_scale;
  DeviceArray<int8_t> exponent;
  DeviceArray<int32_t> clamped;
};

void ExpectEqual(const WeightSpec& spec, const ScaleArrays& found,
                 const std::vector<RowScales>& expected) {
  const std::vector<float> scale = found.scale.Read();
  const std::vector<uint8_t> zero = found.zero.Read();
  const std::vector<float> row_scale = found.row_scale.Read();
  const std::vector<int8_t> exponent = found.exponent.Read();
  const std::vector<int32_t> clamped = found.clamped.Read();
  const size_t groups = expected[0].scale.size();
  for (size_t row = 0; row < expected.size(); ++row) {
    ASSERT_EQ(clamped[row], expected[row].clamped) << "row " << row;
    if (spec.constraint == ScaleConstraint::kM2) {
      ASSERT_EQ(row_scale[row], expected[row].row_scale) << "row " << row;
    }
    for (size_t g = 0; g < groups; ++g) {
      const size_t i = row * groups + g;
      ASSERT_EQ(scale[i], expected[row].scale[g]) << "row " << row << " group " << g;
      if (spec.asymmetric) ASSERT_EQ(zero[i], expected[row].zero[g]) << "row " << row;
      if (spec.constraint != ScaleConstraint::kNone) {
        ASSERT_EQ(exponent[i], expected[row].exponent[g]) << "row " << row << " group " << g;
      }
    }
  }
}

TEST_P(SolverTest, ScalesCodesAndErrorsAreTheCpus) {
  for (const WeightSpec& spec : AllSpecs()) {
    SCOPED_TRACE(testing::Message()
                 << FormatName(spec.format) << (spec.asymmetric ? " asymmetric" : "") << " group "
                 << spec.group_size << " " << ScaleConstraintName(spec.constraint) << " "
                 << M2RoundingName(spec.rounding));
    const DeviceShape shape = {spec, kRows, kCols};
    ScaleArrays scales(kRows, GroupCount(kCols, spec.group_size));
    std::vector<RowScales> expected;
    for (int64_t row = 0; row < kRows; ++row) {
      expected.push_back(
          ComputeRowScales(spec, absl::MakeConstSpan(original_).subspan(row * kCols, kCols)));
    }
    DeviceArray<float> original(original_);
    ASSERT_EQ(ComputeScales(shape, original.data(), scales.Pointers(spec), nullptr),
              absl::OkStatus());
    ExpectEqual(spec, scales, expected);

    DeviceArray<uint8_t> rounded(kRows * kCols);
    ASSERT_EQ(QuantizeRows(shape, original.data(), scales.Pointers(spec), rounded.data(), nullptr),
              absl::OkStatus());
    const std::vector<uint8_t> rounded_codes = rounded.Read();
    const int64_t width = GroupWidth(kCols, spec.group_size);
    for (int64_t i = 0; i < kRows * kCols; ++i) {
      const RowScales& row = expected[i / kCols];
      const int64_t group = i % kCols / width;
      ASSERT_EQ(rounded_codes[i], QuantizeWeight(spec, original_[i], row.scale[group],
                                                 spec.asymmetric ? row.zero[group] : 0))
          << "element " << i;
    }

    // The first two blocks, the second with the first one's errors not spread: on both sides.
    std::vector<float> weights = weights_;
    DeviceArray<float> device_weights(weights_);
    DeviceArray<float> hinv(hinv_);
    DeviceArray<int64_t> order(order_);
    std::vector<uint8_t> codes(kRows * kCols, 0xff);
    DeviceArray<uint8_t> device_codes(codes);
    const SolverPlan plan = {&spec, source(), order_, hinv_.data(), kCols};
    for (const ColumnBlock& block : MakeBlocks(kCols, 128, spec.group_size, source())) {
      std::vector<float> errors(kRows * block.size());
      for (int64_t row = 0; row < kRows; ++row) {
        SolveBlock(plan, block, weights.data() + row * kCols, expected[row],
                   codes.data() + row * kCols, errors.data() + row * block.size());
      }
      DeviceArray<float> device_errors(errors.size());
      const DeviceBlock on_device = {block.begin, block.end, natural(), order.data(), hinv.data()};
      ASSERT_EQ(SolveBlocks(shape, on_device, device_weights.data(), scales.Pointers(spec),
                            device_codes.data(), device_errors.data(), nullptr),
                absl::OkStatus());
      ASSERT_EQ(device_errors.Read(), errors) << "block at " << block.begin;
    }
    ASSERT_EQ(device_codes.Read(), codes);
    ASSERT_EQ(device_weights.Read(), weights);
    ExpectEqual(spec, scales, expected);
  }
}

INSTANTIATE_TEST_SUITE_P(Orders, SolverTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "Natural" : "ActOrder"; });

TEST(SolveBlocks, RefusesBlocksItCantHold) {
  DeviceArray<float> floats(1);
  DeviceArray<int32_t> clamped(1);
  DeviceArray<int64_t> order(1);
  DeviceArray<uint8_t> codes(1);
  const DeviceShape shape = {{Format::kE2M1, false, 64, ScaleConstraint::kNone}, 1, 300};
  const DeviceRowScales scales = {.scale = floats.data(), .clamped = clamped.data()};
  const auto solve = [&](int64_t begin, int64_t end) {
    const DeviceBlock block = {begin, end, false, order.data(), floats.data()};
    return SolveBlocks(shape, block, floats.data(), scales, codes.data(), floats.data(), nullptr);
  };
  EXPECT_EQ(solve(0, 129).message(), "SolveBlocks: found columns 0 to 129, expected 1..128 of 300");
  EXPECT_FALSE(solve(5, 5).ok());
  EXPECT_FALSE(solve(200, 301).ok());
}

}  // namespace
}  // namespace nibble
