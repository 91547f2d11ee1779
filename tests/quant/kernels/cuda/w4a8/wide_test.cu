// The W4A8 linear beyond 64 tokens, every kernel of it. Runs on a Hopper GPU only. The oracles are
// the format library's true values on the CPU, in double precision, and weights arranged value by
// value (arrange.h).
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "quant/base/strings.h"
#include "quant/kernels/cuda/w4a8/decode.h"
#include "quant/kernels/cuda/w4a8/wide.h"
#include "tests/quant/kernels/cuda/w4a8/arrange.h"
#include "tests/quant/kernels/cuda/w4a8/prepared.h"
#include "tests/quant/kernels/cuda/w4a8/reference.h"

namespace nibble::w4a8 {
namespace {

// y as f32 and as bf16 by one plan.
Output Product(const DeviceLinear& weights, const Input& input, const WidePlan& plan) {
  const PreparedLinear& linear = weights.linear();
  Workspace workspace(WideWorkspaceMemory(ShapeOf(linear, input.tokens), plan.source).bytes);
  DeviceCall call(linear, input);
  for (const bool as_f32 : {true, false}) {
    EXPECT_EQ(LaunchWide(plan, linear, call.Call(workspace.data(), as_f32), nullptr),
              absl::OkStatus());
  }
  const Output output = call.Read();
  workspace.ExpectZeroCounters();
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

// What the accumulator may lose (reference.h). bf16 adds its rounding.
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
      const double bound = TruncationBound(segments[0].weight, input, plan.promoted, positive);
      const double error = RelativeError(reference.y, output.f32);
      std::printf("%s %s: error %.2e, at most %.2e\n", positive ? "positive" : "zero-mean",
                  plan.ToString().c_str(), error, bound);
      EXPECT_LT(error, bound);
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
