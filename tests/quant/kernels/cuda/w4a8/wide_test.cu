// The W4A8 linear beyond 64 tokens, every kernel of it. Runs on a Hopper GPU only. The oracles are
// the format library's true values on the CPU, in double precision, and weights arranged value by
// value (arrange.h).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "quant/base/strings.h"
#include "quant/kernels/cuda/w4a8/decode.h"
#include "quant/kernels/cuda/w4a8/wide.h"
#include "tests/quant/kernels/cuda/device_array.h"
#include "tests/quant/kernels/cuda/w4a8/arrange.h"

namespace nibble::w4a8 {
namespace {

using Random = std::mt19937;

WeightSpec Spec(Format format = Format::kE2M1, int group_size = 128,
                ScaleConstraint constraint = ScaleConstraint::kM2) {
  return {format, false, group_size, constraint};
}

// Any code, and offsets up to `max_offset` below scales that are powers of two unless `any_scale`.
QuantizedMatrix RandomMatrix(const WeightSpec& spec, int64_t rows, int64_t cols, int max_offset,
                             bool any_scale, Random& random) {
  QuantizedMatrix m = MakeQuantizedMatrix(spec, rows, cols);
  for (uint8_t& byte : m.codes) byte = static_cast<uint8_t>(random());
  const auto offset = [&] { return static_cast<int>(random() % (max_offset + 1)); };
  for (float& scale : m.row_scale) {
    scale = any_scale ? 0.5f + static_cast<float>(random() % 1000) / 700.f : 1.f;
  }
  for (uint8_t& k : m.k) k = static_cast<uint8_t>(offset() | offset() << 4);
  for (int8_t& exponent : m.exponent) exponent = static_cast<int8_t>(-offset());
  if (cols % 2 != 0) {
    for (int64_t row = 0; row < rows; ++row) m.codes[(row + 1) * ((cols + 1) / 2) - 1] &= 15;
  }
  return m;
}

// One call's inputs on the host. x [tokens, cols] codes; x_scale [tokens].
struct Input {
  int64_t tokens;
  int64_t cols;
  std::vector<uint8_t> x;
  std::vector<float> x_scale;
};

Input MakeInput(int64_t tokens, int64_t cols, const std::function<float()>& value) {
  Input input{tokens, cols, std::vector<uint8_t>(tokens * cols), std::vector<float>(tokens, 1.f)};
  for (uint8_t& code : input.x) code = EncodeValue(Format::kE4M3, value());
  return input;
}

struct Output {
  std::vector<float> f32;           // [tokens, rows]
  std::vector<__nv_bfloat16> bf16;  // [tokens, rows]
};

// y as f32 and as bf16 by one plan. What lies beyond y, and x's columns beyond cols, is poisoned.
Output Product(const DeviceLinear& weights, const Input& input, const WidePlan& plan) {
  const PreparedLinear& linear = weights.linear();
  const int64_t pitch = RoundUp(input.cols, 16);
  std::vector<uint8_t> padded(input.tokens * pitch, 0x7f);
  for (int64_t token = 0; token < input.tokens; ++token) {
    std::memcpy(&padded[token * pitch], &input.x[token * input.cols], input.cols);
  }
  DeviceArray<uint8_t> x(padded);
  DeviceArray<float> x_scale(input.x_scale);
  const LinearShape shape = ShapeOf(linear, input.tokens);
  DeviceArray<uint8_t> workspace(WideWorkspaceMemory(shape, plan.source).bytes);
  ExpectCuda(cudaMemset(workspace.data(), 0, kWorkspaceCounterBytes));
  const int64_t size = input.tokens * linear.rows;
  constexpr int64_t kBeyond = 4096;
  DeviceArray<float> f32(size + kBeyond);
  DeviceArray<__nv_bfloat16> bf16(size + kBeyond);
  LinearCall call;
  call.x = x.data();
  call.x_pitch = pitch;
  call.x_scale = x_scale.data();
  call.tokens = input.tokens;
  call.y_f32 = f32.data();
  call.workspace = workspace.data();
  EXPECT_EQ(LaunchWide(plan, linear, call, nullptr), absl::OkStatus());
  call.y_f32 = nullptr;
  call.y = bf16.data();
  EXPECT_EQ(LaunchWide(plan, linear, call, nullptr), absl::OkStatus());
  Output output{f32.Read(), bf16.Read()};
  for (int64_t i = size; i < size + kBeyond; ++i) {
    EXPECT_TRUE(std::isnan(output.f32[i]) && std::isnan(__bfloat162float(output.bf16[i])))
        << "written beyond y at " << i - size;
    if (testing::Test::HasFailure()) break;
  }
  output.f32.resize(size);
  output.bf16.resize(size);
  const std::vector<uint8_t> after = workspace.Read();
  EXPECT_EQ(std::count(after.begin(), after.begin() + kWorkspaceCounterBytes, 0),
            kWorkspaceCounterBytes);
  return output;
}

// Every kernel that may multiply the shape.
std::vector<WidePlan> Plans(const PreparedLinear& linear, int64_t tokens) {
  const LinearShape shape = ShapeOf(linear, tokens);
  std::vector<WidePlan> plans;
  for (const bool promoted : {true, false}) {
    for (const int cluster : {1, 2}) {
      plans.push_back(PlanWide(shape, promoted, {}, {1, 2, cluster}));
    }
    for (const int row_tiles : {1, 2}) {
      for (const int cluster : {1, 2, 4}) {
        plans.push_back(PlanWide(shape, promoted, {}, {-1, row_tiles, cluster}));
      }
    }
  }
  return plans;
}

// y[token, row] in double, LoRC and bias included; `magnitude` the sum of absolute terms.
struct Reference {
  std::vector<double> y;
  double magnitude = 0;  // the largest of sum |w x| over one output
};
Reference Multiply(const std::vector<HostSegment>& segments, const Input& input) {
  int64_t rows = 0;
  for (const HostSegment& segment : segments) rows += segment.weight.rows;
  Reference reference{std::vector<double>(input.tokens * rows)};
  std::vector<double> x(input.x.size());
  for (size_t i = 0; i < x.size(); ++i) x[i] = DecodeValue(Format::kE4M3, input.x[i]);
  std::vector<float> weights(input.cols);
  int64_t column = 0;
  for (const HostSegment& segment : segments) {
    std::vector<double> t(input.tokens * segment.rank);
    for (int64_t i = 0; i < input.tokens * segment.rank; ++i) {
      for (int64_t col = 0; col < input.cols; ++col) {
        t[i] += x[i / segment.rank * input.cols + col] *
                segment.lorc_b[i % segment.rank * input.cols + col];
      }
    }
    for (int64_t row = 0; row < segment.weight.rows; ++row, ++column) {
      segment.weight.DequantizeRow(row, absl::MakeSpan(weights));
      for (int64_t token = 0; token < input.tokens; ++token) {
        double sum = 0;
        double magnitude = 0;
        for (int64_t col = 0; col < input.cols; ++col) {
          const double product = weights[col] * x[token * input.cols + col];
          sum += product;
          magnitude += std::fabs(product);
        }
        for (int rank = 0; rank < segment.rank; ++rank) {
          sum += segment.lorc_a[row * segment.rank + rank] * t[token * segment.rank + rank];
        }
        const double bias = segment.bias.empty() ? 0 : segment.bias[row];
        reference.y[token * rows + column] = sum * input.x_scale[token] + bias;
        reference.magnitude = std::max(reference.magnitude, magnitude);
      }
    }
  }
  return reference;
}

double RelativeError(const std::vector<double>& expected, const std::vector<float>& found) {
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += (found[i] - expected[i]) * (found[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(difference / norm);
}

std::vector<float> ToFloats(const std::vector<__nv_bfloat16>& values) {
  std::vector<float> floats;
  for (const __nv_bfloat16 value : values) floats.push_back(__bfloat162float(value));
  return floats;
}

// Bit for bit, in f32 and rounded to bf16.
void ExpectExactly(const std::vector<double>& expected, const Output& found, int64_t rows) {
  for (size_t i = 0; i < expected.size(); ++i) {
    const auto value = static_cast<float>(expected[i]);
    ASSERT_EQ(found.f32[i], value) << "token " << i / rows << " row " << i % rows;
    ASSERT_EQ(__bfloat162float(found.bf16[i]), __bfloat162float(__float2bfloat16(value)))
        << "bf16, token " << i / rows << " row " << i % rows;
  }
}

class Wide : public testing::Test {
 protected:
  uint32_t seed_ = std::random_device{}();
  Random random_{seed_};
  testing::ScopedTrace trace_{__FILE__, __LINE__, StrCat("seed ", seed_)};
};

// x is the identity: y is the weights.
TEST_F(Wide, OneHotTokensReadEveryWeight) {
  for (const WeightSpec& spec :
       {Spec(), Spec(Format::kE2M1, 16), Spec(Format::kE2M1, 64), Spec(Format::kE2M1, kWholeRow),
        Spec(Format::kE3M0, 32), Spec(Format::kE2M1, 256, ScaleConstraint::kM1)}) {
    SCOPED_TRACE(StrCat(FormatName(spec.format), " group ", spec.group_size));
    constexpr int64_t kCols = 300;
    const std::vector<HostSegment> segments = {
        {RandomMatrix(spec, 150, kCols, kMaxExponentOffset, true, random_)}};
    const DeviceLinear weights(Arrange(segments));
    Input input = MakeInput(kCols, kCols, [] { return 0.f; });
    for (int64_t i = 0; i < kCols; ++i) input.x[i * kCols + i] = EncodeValue(Format::kE4M3, 1);
    const Reference reference = Multiply(segments, input);
    for (const WidePlan& plan : Plans(weights.linear(), kCols)) {
      SCOPED_TRACE(plan.ToString());
      ExpectExactly(reference.y, Product(weights, input, plan), 150);
      if (HasFatalFailure()) return;
    }
  }
}

// Sums that every order of additions and the 13-bit accumulator keep exact: the terms are multiples
// of 1/2 and their absolute sum stays below 2^12.
TEST_F(Wide, IntegersAreExactForRaggedShapes) {
  const auto sparse = [&] {
    return random_() % 8 == 0 ? static_cast<float>(static_cast<int>(random_() % 5) - 2) : 0.f;
  };
  for (const int64_t rows : {40, 64, 129, 700}) {
    for (const int64_t cols : {100, 128, 515, 1300}) {
      const std::vector<HostSegment> segments = {
          {RandomMatrix(Spec(), rows, cols, 0, false, random_)}};
      const DeviceLinear weights(Arrange(segments));
      for (const int64_t tokens : {65, 127, 128, 257, 300}) {
        const Input input = MakeInput(tokens, cols, sparse);
        const Reference reference = Multiply(segments, input);
        ASSERT_LT(reference.magnitude, 4096);
        for (const WidePlan& plan : Plans(weights.linear(), tokens)) {
          SCOPED_TRACE(StrCat("[", rows, ", ", cols, "] ", tokens, " tokens ", plan.ToString()));
          ExpectExactly(reference.y, Product(weights, input, plan), rows);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

// The bounds of the memo on accumulation: promoted 2e-4 of zero-mean and 1e-3 of positive sums; the
// fast mode's truncation grows with K, here 2,048: 1.5e-3 and 2e-2. bf16 adds its rounding.
TEST_F(Wide, RandomProductsAreAsCloseAsTheAccumulatorAllows) {
  constexpr int64_t kRows = 192;
  constexpr int64_t kCols = 2048;
  constexpr int64_t kTokens = 260;
  for (const bool positive : {false, true}) {
    std::vector<HostSegment> segments = {{RandomMatrix(Spec(), kRows, kCols, 3, true, random_)}};
    if (positive) {
      for (uint8_t& codes : segments[0].weight.codes) codes &= 0x77;
    }
    const DeviceLinear weights(Arrange(segments));
    std::normal_distribution<float> normal(0, 100);
    Input input = MakeInput(kTokens, kCols, [&] {
      const float value = normal(random_);
      return positive ? std::fabs(value) : value;
    });
    for (float& scale : input.x_scale) scale = static_cast<float>(random_() % 100 + 1) / 64.f;
    const Reference reference = Multiply(segments, input);
    for (const WidePlan& plan : Plans(weights.linear(), kTokens)) {
      SCOPED_TRACE(StrCat(positive ? "positive " : "zero-mean ", plan.ToString()));
      const Output output = Product(weights, input, plan);
      const double bound = plan.promoted ? (positive ? 1e-3 : 2e-4) : (positive ? 2e-2 : 1.5e-3);
      EXPECT_LT(RelativeError(reference.y, output.f32), bound);
      EXPECT_LT(RelativeError(reference.y, ToFloats(output.bf16)), bound + 2e-3);
    }
  }
}

// Each segment with a bias, a rank and a ragged end of its own. LoRC's t is rounded to bf16: 2^-9
// of it, and as much again of A t^T in the output; B's two E4M3 numbers lose less.
TEST_F(Wide, SegmentsHaveTheirOwnBiasAndLorc) {
  constexpr int64_t kCols = 520;
  const auto number = [&](float size) {
    std::normal_distribution<float> normal(0, size);
    return __bfloat162float(__float2bfloat16(normal(random_)));
  };
  std::vector<HostSegment> segments;
  for (const auto& [rows, rank] : {std::pair{100, 16}, std::pair{64, 0}, std::pair{72, 40}}) {
    HostSegment segment{RandomMatrix(Spec(), rows, kCols, 3, true, random_)};
    segment.rank = rank;
    for (int64_t i = 0; i < rows; ++i) segment.bias.push_back(number(10));
    for (int64_t i = 0; i < rows * rank; ++i) segment.lorc_a.push_back(number(1));
    for (int64_t i = 0; i < rank * kCols; ++i) segment.lorc_b.push_back(number(0.3f));
    segments.push_back(segment);
  }
  const DeviceLinear weights(Arrange(segments));
  std::normal_distribution<float> normal(0, 10);
  for (const int64_t tokens : {70, 260}) {
    const Input input = MakeInput(tokens, kCols, [&] { return normal(random_); });
    const Reference reference = Multiply(segments, input);
    for (const WidePlan& plan : Plans(weights.linear(), tokens)) {
      SCOPED_TRACE(plan.ToString());
      const Output output = Product(weights, input, plan);
      EXPECT_LT(RelativeError(reference.y, output.f32), 4e-3);
      EXPECT_LT(RelativeError(reference.y, ToFloats(output.bf16)), 6e-3);
    }
  }
}

TEST_F(Wide, EveryRunGivesTheSameBits) {
  constexpr int64_t kCols = 1024;
  constexpr int64_t kTokens = 300;
  const std::vector<HostSegment> segments = {
      {RandomMatrix(Spec(), 520, kCols, kMaxExponentOffset, true, random_)}};
  const DeviceLinear weights(Arrange(segments));
  std::normal_distribution<float> normal(0, 100);
  const Input input = MakeInput(kTokens, kCols, [&] { return normal(random_); });
  for (const WidePlan& plan : Plans(weights.linear(), kTokens)) {
    SCOPED_TRACE(plan.ToString());
    const Output first = Product(weights, input, plan);
    for (int i = 0; i < 10; ++i) {
      const Output again = Product(weights, input, plan);
      ASSERT_EQ(std::memcmp(first.f32.data(), again.f32.data(), first.f32.size() * 4), 0);
      ASSERT_EQ(std::memcmp(first.bf16.data(), again.bf16.data(), first.bf16.size() * 2), 0);
    }
  }
}

TEST_F(Wide, RefusesPlansWithoutAKernel) {
  const DeviceLinear weights(
      Arrange({{RandomMatrix(Spec(), 64, 128, kMaxExponentOffset, true, random_)}}));
  WidePlan plan = PlanWide(ShapeOf(weights.linear(), 100), true);
  plan.row_tiles = 3;
  EXPECT_EQ(LaunchWide(plan, weights.linear(), LinearCall{}, nullptr).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace nibble::w4a8
