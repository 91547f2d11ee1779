// The W4A8 linear of up to 64 tokens, through its public interface. Runs on a Hopper GPU only. The
// oracle is the format library's true values on the CPU, in double precision.
#include <gtest/gtest.h>

#include <cstdio>
#include <string>
#include <tuple>
#include <vector>

#include "quant/base/strings.h"
#include "quant/kernels/cuda/w4a8/decode.h"
#include "quant/kernels/cuda/w4a8/linear.h"
#include "quant/kernels/cuda/w4a8/plan.h"
#include "tests/quant/kernels/cuda/w4a8/prepared.h"
#include "tests/quant/kernels/cuda/w4a8/reference.h"

namespace nibble::w4a8 {
namespace {

constexpr ScaleConstraint kM1 = ScaleConstraint::kM1;
constexpr ScaleConstraint kM2 = ScaleConstraint::kM2;
constexpr ScaleConstraint kNone = ScaleConstraint::kNone;

std::string Name(const WeightSpec& spec) {
  return StrCat(FormatName(spec.format), " ", ScaleConstraintName(spec.constraint), " group ",
                spec.group_size);
}

// Every plan that the device can run.
std::vector<DecodePlan> Plans(const PreparedLinear& weights, int64_t tokens) {
  const LinearShape shape = ShapeOf(weights, tokens);
  std::vector<DecodePlan> plans;
  for (const int tiles : {1, 2, 3, 4}) {
    for (const int k_groups : {1, 2, 4}) {
      for (const int splits : {1, 2, 4, 8}) {
        DecodePlan plan;
        plan.token_tile = PlanDecode(shape).token_tile;
        plan.tiles = tiles;
        plan.k_groups = k_groups;
        plan.splits = splits;
        plan.lorc_pieces = kMaxLorcPieces;
        if (plan.warpgroups() > kMaxWarpgroups) continue;
        CompletePlan(shape, {}, 2, 64, plan);
        const absl::StatusOr<int> resident = ResidentBlocks(plan, weights);
        if (!resident.ok() || *resident == 0) continue;
        plans.push_back(plan);
      }
    }
  }
  return plans;
}

class Decode : public testing::Test {
 protected:
  HostSegment RandomSegment(const WeightSpec& spec, int64_t rows, int64_t cols, int rank = 0) {
    HostSegment segment{RandomMatrix(spec, rows, cols, kMaxExponentOffset, true, random_)};
    segment.rank = rank;
    if (rank == 0) return segment;
    segment.bias = Bf16Numbers(rows, 10, random_);
    segment.lorc_a = Bf16Numbers(rows * rank, 1, random_);
    segment.lorc_b = Bf16Numbers(rank * cols, 0.3f, random_);
    return segment;
  }
  Input RandomInput(int64_t tokens, int64_t cols, bool positive = false) {
    std::normal_distribution<float> normal(0, 100);
    Input input = MakeInput(tokens, cols, [&] {
      const float value = normal(random_);
      return positive ? std::fabs(value) : value;
    });
    for (float& scale : input.x_scale) scale = static_cast<float>(random_() % 100 + 1) / 64.f;
    return input;
  }
  // Integers from -2 to 2, seven of eight zero.
  Input SparseIntegers(int64_t tokens, int64_t cols) {
    return MakeInput(tokens, cols, [&] {
      return random_() % 8 == 0 ? static_cast<float>(static_cast<int>(random_() % 5) - 2) : 0.f;
    });
  }

  uint32_t seed_ = std::random_device{}();
  Random random_{seed_};
  testing::ScopedTrace trace_{__FILE__, __LINE__, StrCat("seed ", seed_)};
};

// x is the identity, some columns at a time: y is the weights.
TEST_F(Decode, OneHotTokensReadEveryWeight) {
  constexpr int64_t kRows = 150;
  std::vector<WeightSpec> specs = {Spec(Format::kE2M1, 256, kM1), Spec(Format::kE3M0, 32),
                                   Spec(Format::kE3M0, 128, kM1), Spec(Format::kE3M0, 64, kNone),
                                   Spec(Format::kE4M3, 128, kM2), Spec(Format::kE4M3, 64, kM1)};
  for (const int group_size : {16, 32, 64, 128, 256, 512, 1024, kWholeRow}) {
    specs.push_back(Spec(Format::kE2M1, group_size, kM2));
    specs.push_back(Spec(Format::kE2M1, group_size, kNone));
    specs.push_back(Spec(Format::kE4M3, group_size, kNone));
  }
  for (const WeightSpec& spec : specs) {
    for (const int64_t cols : {300, 1100}) {  // the latter a group of 1,024 and more
      SCOPED_TRACE(StrCat(Name(spec), ", ", cols, " columns"));
      const std::vector<HostSegment> segments = {RandomSegment(spec, kRows, cols)};
      const Prepared weights(segments);
      for (const int64_t batch : {5, 16, 31, 64}) {
        for (int64_t first = 0; first < cols; first += batch) {
          const int64_t tokens = std::min(batch, cols - first);
          Input input = MakeInput(tokens, cols, [] { return 0.f; });
          std::vector<double> expected(tokens * kRows);
          for (int64_t i = 0; i < tokens; ++i) {
            input.x[i * cols + first + i] = EncodeValue(Format::kE4M3, 1);
          }
          std::vector<float> row(cols);
          for (int64_t r = 0; r < kRows; ++r) {
            segments[0].weight.DequantizeRow(r, absl::MakeSpan(row));
            for (int64_t i = 0; i < tokens; ++i) expected[i * kRows + r] = row[first + i];
          }
          SCOPED_TRACE(StrCat(tokens, " tokens from column ", first));
          ExpectExactly(expected, Product(weights, input), kRows);
          if (HasFailure()) return;
          if (cols > 300 && first == 0) first = 960 - batch;  // on to the long group's end
        }
      }
    }
  }
}

// Sums that every order of additions and the 13-bit accumulator keep exact: the terms are multiples
// of 1/2 and their absolute sum stays below 2^12.
TEST_F(Decode, IntegersAreExactForRaggedShapes) {
  for (const WeightSpec& spec :
       {Spec(), Spec(Format::kE2M1, 16), Spec(Format::kE2M1, 128, kNone)}) {
    for (const int64_t rows : {40, 64, 129, 700}) {
      for (const int64_t cols : {100, 128, 515, 1300}) {
        const std::vector<HostSegment> segments = {
            {RandomMatrix(spec, rows, cols, 0, false, random_)}};
        const Prepared weights(segments);
        const Input input = SparseIntegers(64, cols);
        const Reference reference = Multiply(segments, input);
        ASSERT_LT(reference.magnitude, 4096);
        for (const int64_t tokens : {1, 2, 7, 8, 9, 16, 17, 32, 33, 63, 64}) {
          SCOPED_TRACE(StrCat(Name(spec), " [", rows, ", ", cols, "] ", tokens, " tokens"));
          const std::vector<double> expected(reference.y.begin(),
                                             reference.y.begin() + tokens * rows);
          ExpectExactly(expected, Product(weights, TakeTokens(input, 0, tokens)), rows);
          if (HasFailure()) return;
        }
      }
    }
  }
}

// What the accumulator may lose (reference.h): about 4e-4 of zero-mean sums, 1e-3 of positive ones
// (2.4e-3 of other formats than E2M1). bf16 adds its rounding.
TEST_F(Decode, RandomProductsAreAsCloseAsTheAccumulatorAllows) {
  constexpr int64_t kRows = 192;
  constexpr int64_t kCols = 2048;
  for (const WeightSpec& spec :
       {Spec(), Spec(Format::kE2M1, 16), Spec(Format::kE2M1, kWholeRow), Spec(Format::kE3M0, 64),
        Spec(Format::kE2M1, 256, kM1), Spec(Format::kE2M1, 128, kNone),
        Spec(Format::kE2M1, 32, kNone), Spec(Format::kE4M3, 128, kM2)}) {
    for (const bool positive : {false, true}) {
      std::vector<HostSegment> segments = {RandomSegment(spec, kRows, kCols)};
      const uint8_t mask = FormatBits(spec.format) == 8 ? 0x7f : 0x77;
      for (uint8_t& codes : segments[0].weight.codes) codes = positive ? codes & mask : codes;
      const Prepared weights(segments);
      const Input input = RandomInput(64, kCols, positive);
      const Reference reference = Multiply(segments, input);
      for (const int64_t tokens : {1, 8, 16, 32, 64}) {
        const Input part = TakeTokens(input, 0, tokens);
        const double bound = TruncationBound(segments[0].weight, part, true, positive);
        const std::vector<double> expected(reference.y.begin(),
                                           reference.y.begin() + tokens * kRows);
        const Output output = Product(weights, part);
        const double error = RelativeError(expected, output.f32);
        const std::string name =
            StrCat(Name(spec), positive ? " positive, " : " zero-mean, ", tokens, " tokens");
        std::printf("%s: error %.2e, at most %.2e\n", name.c_str(), error, bound);
        EXPECT_LT(error, bound) << name;
        EXPECT_LT(RelativeError(expected, ToFloats(output.bf16)), bound + 2e-3) << name;
      }
    }
  }
}

// A token's row of y has the same bits in every batch and at every place in it. The shapes' blocks
// have one to four row tiles, and share K among 1, 2, 4, 8 and 16 parts, some with LoRC in
// clusters.
TEST_F(Decode, ATokensBitsDependOnNothingElseInTheBatch) {
  struct Case {
    WeightSpec spec;
    int64_t rows, cols;
    int rank;
  };
  for (const Case& c :
       {Case{Spec(), 520, 1024, 0}, Case{Spec(), 520, 2100, 24}, Case{Spec(), 8192, 400, 0},
        Case{Spec(), 17000, 256, 16}, Case{Spec(), 17000, 400, 0}, Case{Spec(), 9000, 600, 0},
        Case{Spec(Format::kE2M1, 16), 4000, 640, 0},
        Case{Spec(Format::kE2M1, 128, kNone), 520, 1024, 16},
        Case{Spec(Format::kE4M3, 64, kNone), 300, 2100, 0}}) {
    const Prepared weights({RandomSegment(c.spec, c.rows, c.cols, c.rank)});
    const Input input = RandomInput(64, c.cols);
    const Output all = Product(weights, input);
    for (int64_t tokens = 1; tokens <= 64; ++tokens) {
      const int64_t first = tokens * 37 % 64;
      const Output some = Product(weights, TakeTokens(input, first, tokens));
      for (int64_t i = 0; i < tokens; ++i) {
        ASSERT_TRUE(SameRow(some, i, all, (first + i) % 64, c.rows))
            << Name(c.spec) << " [" << c.rows << ", " << c.cols << "] rank " << c.rank << ", "
            << tokens << " tokens, place " << i;
      }
    }
  }
}

// Those that the planner does not choose, too: the benches race them.
TEST_F(Decode, EveryPlanIsExact) {
  for (const auto& [rows, cols, rank] :
       {std::tuple{300, 1300, 0}, std::tuple{130, 2048, 16}, std::tuple{5000, 700, 0}}) {
    HostSegment segment{RandomMatrix(Spec(), rows, cols, 0, false, random_)};
    segment.rank = rank;
    segment.lorc_a = Integers(rows * rank, 2, random_);
    segment.lorc_b = Integers(rank * cols, 2, random_);
    const Prepared weights({segment});
    const PreparedLinear& linear = weights.linear();
    const Input all = SparseIntegers(64, cols);
    const Reference reference = Multiply({segment}, all);
    for (const int64_t tokens : {3, 16, 32, 64}) {
      const std::vector<double> expected(reference.y.begin(), reference.y.begin() + tokens * rows);
      DeviceCall call(linear, TakeTokens(all, 0, tokens));
      Workspace workspace(WorkspaceBytes(linear, tokens));
      for (const DecodePlan& plan : Plans(linear, tokens)) {
        SCOPED_TRACE(plan.ToString());
        call.Poison();
        for (const bool as_f32 : {true, false}) {
          ASSERT_EQ(LaunchDecode(plan, linear, call.Call(workspace.data(), as_f32), nullptr),
                    absl::OkStatus());
        }
        ExpectExactly(expected, call.Read(), rows);
        workspace.ExpectZeroCounters();
        if (HasFailure()) return;
      }
    }
  }
}

TEST_F(Decode, EveryRunGivesTheSameBits) {
  for (const WeightSpec& spec : {Spec(), Spec(Format::kE2M1, 64, kNone)}) {
    const Prepared weights({RandomSegment(spec, 1000, 2048, 16)});
    for (const int64_t tokens : {1, 16, 32, 64}) {
      const Input input = RandomInput(tokens, 2048);
      const Output first = Product(weights, input);
      for (int run = 0; run < 10; ++run) {
        const Output again = Product(weights, input);
        for (int64_t i = 0; i < tokens; ++i) {
          ASSERT_TRUE(SameRow(first, i, again, i, 1000))
              << Name(spec) << " " << tokens << " run " << run << " token " << i;
        }
      }
    }
  }
}

// At 64 | 65 tokens another kernel takes over.
TEST_F(Decode, TheRegimesAgree) {
  ASSERT_EQ(ChooseRegime(64), Regime::kDecode);
  ASSERT_EQ(ChooseRegime(65), Regime::kMedium);
  constexpr int64_t kRows = 300;
  constexpr int64_t kCols = 1300;
  const std::vector<HostSegment> integers = {
      {RandomMatrix(Spec(), kRows, kCols, 0, false, random_)}};
  const Prepared exact(integers);
  const Input sparse = SparseIntegers(65, kCols);
  const Output wide = Product(exact, sparse);
  const Output decode = Product(exact, TakeTokens(sparse, 0, 64));
  for (int64_t i = 0; i < 64; ++i) ASSERT_TRUE(SameRow(decode, i, wide, i, kRows)) << "token " << i;

  // Otherwise each is as close to the truth as its accumulator allows, so that they differ by
  // twice that at most.
  const std::vector<HostSegment> segments = {RandomSegment(Spec(), kRows, kCols)};
  const Prepared weights(segments);
  const Input input = RandomInput(65, kCols);
  const Output of_65 = Product(weights, input);
  const Output of_64 = Product(weights, TakeTokens(input, 0, 64));
  ASSERT_EQ(of_65.f32.size(), 65u * kRows);
  const std::vector<double> first(of_64.f32.begin(), of_64.f32.end());
  const std::vector<float> second(of_65.f32.begin(), of_65.f32.begin() + 64 * kRows);
  EXPECT_LT(RelativeError(first, second),
            2 * TruncationBound(segments[0].weight, input, true, false));
}

}  // namespace
}  // namespace nibble::w4a8
