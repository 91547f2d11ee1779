// The arranged matrices and their kernels: what they hold, what they compute, and that every
// instruction set and every tiling gives the same bits.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "quant/kernels/cpu/arranged_matrix.h"

namespace nibble {
namespace {

constexpr uint64_t kSeed = 20251125;

std::vector<float> RandomValues(int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

QuantizedMatrix RandomMatrix(const WeightSpec& spec, int64_t rows, int64_t cols) {
  const std::vector<float> values = RandomValues(rows * cols, kSeed + rows * cols);
  QuantizedMatrix matrix = MakeQuantizedMatrix(spec, rows, cols);
  const int64_t width = GroupWidth(cols, spec.group_size);
  for (int64_t row = 0; row < rows; ++row) {
    const auto w = absl::MakeConstSpan(values).subspan(row * cols, cols);
    const RowScales scales = ComputeRowScales(spec, w);
    std::vector<uint8_t> codes(cols);
    for (int64_t c = 0; c < cols; ++c) {
      const int64_t group = c / width;
      codes[c] =
          QuantizeWeight(spec, w[c], scales.scale[group], spec.asymmetric ? scales.zero[group] : 0);
    }
    StoreRow(matrix, row, codes, scales);
  }
  EXPECT_TRUE(matrix.Validate("w").ok());
  return matrix;
}

// A tile's values [columns, tokens] as TileInputs::pairs.
std::vector<uint32_t> Pairs(const std::vector<float>& tile, int64_t tokens) {
  std::vector<uint32_t> pairs(tile.size() / 2);
  for (size_t i = 0; i < pairs.size(); ++i) {
    const int64_t place = i / tokens * 2 * tokens + i % tokens;
    pairs[i] = std::bit_cast<uint32_t>(tile[place]) >> 16 |
               std::bit_cast<uint32_t>(tile[place + tokens]) >> 16 << 16;
  }
  return pairs;
}

// y[tokens][rows], in tiles of `tile_tokens` tokens and `panels` panels.
std::vector<float> Multiply(const ArrangedMatrix& matrix, const std::vector<float>& x,
                            int64_t tokens, int tile_tokens, int panels, bool as_pairs = false) {
  std::vector<float> y(tokens * matrix.rows());
  for (int64_t first = 0; first < tokens; first += tile_tokens) {
    const int count = static_cast<int>(std::min<int64_t>(tile_tokens, tokens - first));
    std::vector<float> tile(matrix.padded_cols() * count);
    for (int64_t c = 0; c < matrix.cols(); ++c) {
      for (int t = 0; t < count; ++t) tile[c * count + t] = x[(first + t) * matrix.cols() + c];
    }
    for (int64_t panel = 0; panel < matrix.panel_count(); panel += panels) {
      TileInputs inputs;
      matrix.Describe(
          panel, static_cast<int>(std::min<int64_t>(panels, matrix.panel_count() - panel)), inputs);
      const std::vector<uint32_t> pairs = Pairs(tile, count);
      if (as_pairs) {
        inputs.pairs = pairs.data();
      } else {
        inputs.x = tile.data();
      }
      inputs.tokens = count;
      std::vector<float> totals(count * inputs.panel_count * kPanelRows);
      matrix.kernels().multiply(inputs, totals.data());
      for (int t = 0; t < count; ++t) {
        for (int64_t i = 0; i < inputs.panel_count * kPanelRows; ++i) {
          const int64_t row = panel * kPanelRows + i;
          if (row >= matrix.rows()) break;
          y[(first + t) * matrix.rows() + row] = totals[t * inputs.panel_count * kPanelRows + i];
        }
      }
    }
  }
  return y;
}

std::vector<WeightSpec> EverySpec() {
  std::vector<WeightSpec> specs;
  for (const Format format :
       {Format::kE2M1, Format::kE3M0, Format::kE4M3, Format::kE5M2, Format::kInt4, Format::kInt8}) {
    for (const int group : {16, 64, 256, kWholeRow}) {
      for (const ScaleConstraint constraint :
           {ScaleConstraint::kNone, ScaleConstraint::kM1, ScaleConstraint::kM2}) {
        specs.push_back({.format = format, .group_size = group, .constraint = constraint});
      }
      if (IsInteger(format)) {
        specs.push_back({.format = format,
                         .asymmetric = true,
                         .group_size = group,
                         .constraint = ScaleConstraint::kNone});
      }
    }
  }
  return specs;
}

std::string Name(const WeightSpec& spec, Isa isa) {
  return std::string(IsaName(isa)) + ' ' + std::string(FormatName(spec.format)) +
         (spec.asymmetric ? " asymmetric " : " ") + std::to_string(spec.group_size) + ' ' +
         std::string(ScaleConstraintName(spec.constraint));
}

// 37 rows: a panel and a short one after two full; 100 and 63 columns: short last groups, and a
// last step that is padded.
constexpr int64_t kRows = 37;

class ArrangedMatrixTest : public testing::TestWithParam<Isa> {};

TEST_P(ArrangedMatrixTest, HoldsTheTrueValuesOfEveryFormat) {
  for (const WeightSpec& spec : EverySpec()) {
    for (const int64_t cols : {100, 63}) {
      const QuantizedMatrix matrix = RandomMatrix(spec, kRows, cols);
      const auto arranged = ArrangedMatrix::FromQuantized(matrix, GetParam());
      std::vector<float> expected(cols), found(cols);
      for (int64_t row = 0; row < kRows; ++row) {
        matrix.DequantizeRow(row, absl::MakeSpan(expected));
        arranged.Row(row, absl::MakeSpan(found));
        ASSERT_EQ(found, expected) << Name(spec, GetParam()) << " row " << row;
      }
    }
  }
}

// Against sums in double: n products rounded one after the other differ by at most n 2^-24 of the
// sum of their magnitudes, and each group adds two roundings.
TEST_P(ArrangedMatrixTest, MultipliesEveryFormat) {
  constexpr int64_t kTokens = 3;
  for (const WeightSpec& spec : EverySpec()) {
    for (const int64_t cols : {100, 63}) {
      const QuantizedMatrix matrix = RandomMatrix(spec, kRows, cols);
      const auto arranged = ArrangedMatrix::FromQuantized(matrix, GetParam());
      const std::vector<float> x = RandomValues(kTokens * cols, 7);
      const std::vector<float> y =
          Multiply(arranged, x, kTokens, arranged.kernels().tile_tokens, kMaxTilePanels);
      std::vector<float> w(cols);
      for (int64_t row = 0; row < kRows; ++row) {
        matrix.DequantizeRow(row, absl::MakeSpan(w));
        for (int64_t t = 0; t < kTokens; ++t) {
          double sum = 0;
          double magnitude = 0;
          for (int64_t c = 0; c < cols; ++c) {
            const double product = static_cast<double>(w[c]) * x[t * cols + c];
            sum += product;
            magnitude += std::fabs(product);
          }
          const double bound =
              static_cast<double>(cols + 2 * matrix.groups()) * 0x1p-24 * magnitude;
          ASSERT_NEAR(y[t * kRows + row], sum, bound)
              << Name(spec, GetParam()) << " row " << row << " token " << t;
        }
      }
    }
  }
}

// Columns begin .. end - 1 as tile.h orders them: of each pair the second first.
std::vector<int64_t> Order(int64_t begin, int64_t end) {
  std::vector<int64_t> order;
  for (int64_t c = begin; c < end; c += 2) {
    if (c + 1 < end) order.push_back(c + 1);
    order.push_back(c);
  }
  return order;
}

std::vector<int64_t> Rising(int64_t count) {
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  return order;
}

// The definition in tile.h, one product at a time.
std::vector<float> Definition(const QuantizedMatrix& matrix, const std::vector<float>& x,
                              int64_t tokens) {
  std::vector<float> y(tokens * matrix.rows);
  const int64_t width = GroupWidth(matrix.cols, matrix.spec.group_size);
  const int64_t stride = (matrix.cols + 1) / 2;
  for (int64_t row = 0; row < matrix.rows; ++row) {
    const std::vector<uint8_t> codes =
        UnpackCodes(matrix.spec.format,
                    absl::MakeConstSpan(matrix.codes).subspan(row * stride, stride), matrix.cols);
    for (int64_t t = 0; t < tokens; ++t) {
      float total = 0;
      for (int64_t g = 0; g < matrix.groups(); ++g) {
        float sum = 0;
        for (const int64_t c : Order(g * width, std::min(matrix.cols, (g + 1) * width))) {
          sum = std::fmaf(DecodeValue(matrix.spec.format, codes[c]), x[t * matrix.cols + c], sum);
        }
        total = std::fmaf(sum, matrix.GroupScaleAt(row, g), total);
      }
      y[t * matrix.rows + row] = total;
    }
  }
  return y;
}

TEST_P(ArrangedMatrixTest, TilingAndInstructionSetChangeNoBit) {
  constexpr int64_t kTokens = 13;
  constexpr int64_t kManyRows = 117;  // 7 panels and a short one
  constexpr int64_t kCols = 200;
  const WeightSpec spec{.format = Format::kE2M1, .group_size = 64};
  const QuantizedMatrix matrix = RandomMatrix(spec, kManyRows, kCols);
  const auto arranged = ArrangedMatrix::FromQuantized(matrix, GetParam());
  const std::vector<float> x = RandomValues(kTokens * kCols, 8);
  const std::vector<float> expected = Definition(matrix, x, kTokens);
  for (int tile = 1; tile <= arranged.kernels().tile_tokens; ++tile) {
    for (int panels = 1; panels <= kMaxTilePanels; ++panels) {
      ASSERT_EQ(Multiply(arranged, x, kTokens, tile, panels), expected)
          << IsaName(GetParam()) << ", tiles of " << tile << " tokens and " << panels << " panels";
    }
  }
}

TEST_P(ArrangedMatrixTest, HoldsPlainValuesInSixteenBitsWhereTheseAreExact) {
  constexpr int64_t kCols = 63;
  constexpr int64_t kTokens = 5;
  for (const bool exact : {true, false}) {
    std::vector<float> values = RandomValues(kRows * kCols, 9);
    for (float& value : values) {
      if (exact) value = std::ldexp(std::round(std::ldexp(value, 4)), -4);
    }
    const auto arranged = ArrangedMatrix::FromValues(values, kRows, kCols, GetParam());
    EXPECT_EQ(arranged.kind(), exact ? PanelKind::kBFloat16 : PanelKind::kFloat);
    const std::vector<float> x = RandomValues(kTokens * kCols, 10);
    std::vector<float> expected(kTokens * kRows);
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t row = 0; row < kRows; ++row) {
        float& sum = expected[t * kRows + row];
        for (const int64_t c : exact ? Order(0, kCols) : Rising(kCols)) {
          sum = std::fmaf(values[row * kCols + c], x[t * kCols + c], sum);
        }
      }
    }
    for (int tile = 1; tile <= arranged.kernels().tile_tokens; ++tile) {
      ASSERT_EQ(Multiply(arranged, x, kTokens, tile, 2), expected)
          << IsaName(GetParam()) << ", tiles of " << tile;
    }
    std::vector<float> row(kCols);
    arranged.Row(kRows - 1, absl::MakeSpan(row));
    EXPECT_TRUE(std::equal(row.begin(), row.end(), values.end() - kCols));
  }
}

// A rounded activation's values are bf16 numbers: a set that multiplies them in pairs gives the
// bits of one that does not.
TEST_P(ArrangedMatrixTest, PairsGiveTheBitsOfSingleColumns) {
  if (!KernelsOf(GetParam()).takes_pairs) return;
  constexpr int64_t kTokens = 11;
  for (const WeightSpec& spec : EverySpec()) {
    for (const int64_t cols : {200, 63}) {
      for (const Format format : {Format::kE4M3, Format::kE5M2, Format::kInt8}) {
        std::vector<float> x = RandomValues(kTokens * cols, 14);
        for (int64_t t = 0; t < kTokens; ++t) {
          RoundActivationSteps({.format = format, .asymmetric = t % 2 == 1 && IsInteger(format)},
                               absl::MakeSpan(x).subspan(t * cols, cols));
        }
        const QuantizedMatrix matrix = RandomMatrix(spec, kRows, cols);
        const auto portable = ArrangedMatrix::FromQuantized(matrix, Isa::kPortable);
        const std::vector<float> expected = Multiply(portable, x, kTokens, 1, kMaxTilePanels);
        const auto arranged = ArrangedMatrix::FromQuantized(matrix, GetParam());
        for (const int tile : {1, 3, arranged.kernels().tile_tokens}) {
          ASSERT_EQ(Multiply(arranged, x, kTokens, tile, kMaxTilePanels, true), expected)
              << Name(spec, GetParam()) << ", tiles of " << tile;
        }
      }
    }
  }
}

// The product of pairs takes subnormal numbers for 0.
TEST_P(ArrangedMatrixTest, HoldsVerySmallValuesInFloats) {
  const std::vector<float> small = {1, 0, 0x1p-100F, 0x1p-101F};
  const auto kind = [&](int64_t count) {
    return ArrangedMatrix::FromValues(absl::MakeConstSpan(small).first(count), 1, count, GetParam())
        .kind();
  };
  EXPECT_EQ(kind(3), PanelKind::kBFloat16);
  EXPECT_EQ(kind(4), PanelKind::kFloat);
}

TEST_P(ArrangedMatrixTest, ExponentialsAndSiluOfEverySetAreEqual) {
  const TileKernels& kernels = KernelsOf(GetParam());
  for (const int64_t count : {1, 15, 16, 17, 100}) {
    std::vector<float> scores = RandomValues(count, 11);
    for (float& score : scores) score *= 20;
    scores.resize((count + 15) / 16 * 16, NAN);
    std::vector<float> expected = scores;
    const float expected_sum = kPortableKernels.exponentials(expected.data(), count);
    const float largest = *std::max_element(scores.begin(), scores.begin() + count);
    std::vector<float> found = scores;
    EXPECT_EQ(kernels.exponentials(found.data(), count), expected_sum);
    EXPECT_EQ(found, expected);
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) {
      const double exact = std::exp(static_cast<double>(scores[i]) - largest);
      // The difference is rounded too: half a unit of a number up to 128.
      EXPECT_NEAR(found[i], exact, exact * 6e-6 + 1e-37) << scores[i];
      sum += exact;
    }
    EXPECT_NEAR(expected_sum, sum, 6e-6 * sum);
    EXPECT_TRUE(std::all_of(found.begin() + count, found.end(), [](float x) { return x == 0; }));

    std::vector<float> gate = RandomValues(count, 12);
    const std::vector<float> up = RandomValues(count, 13);
    std::vector<float> expected_gate = gate;
    kPortableKernels.silu_multiply(expected_gate.data(), up.data(), count);
    kernels.silu_multiply(gate.data(), up.data(), count);
    EXPECT_EQ(gate, expected_gate);
  }
}

INSTANTIATE_TEST_SUITE_P(Sets, ArrangedMatrixTest, testing::ValuesIn(AvailableIsas()),
                         [](const auto& info) { return std::string(IsaName(info.param)); });

}  // namespace
}  // namespace nibble
