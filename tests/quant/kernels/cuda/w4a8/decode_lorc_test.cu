// LoRC, biases and segments in the decode regime, and its calls within CUDA graphs. Runs on a
// Hopper GPU only.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "quant/base/strings.h"
#include "quant/kernels/cuda/w4a8/linear.h"
#include "tests/quant/kernels/cuda/w4a8/prepared.h"
#include "tests/quant/kernels/cuda/w4a8/reference.h"

namespace nibble::w4a8 {
namespace {

class DecodeLorc : public testing::Test {
 protected:
  Input RandomInput(int64_t tokens, int64_t cols) {
    std::normal_distribution<float> normal(0, 10);
    Input input = MakeInput(tokens, cols, [&] { return normal(random_); });
    for (float& scale : input.x_scale) scale = static_cast<float>(random_() % 100 + 1) / 64.f;
    return input;
  }
  HostSegment RandomSegment(int64_t rows, int64_t cols, int rank) {
    HostSegment segment{RandomMatrix(Spec(), rows, cols, 3, true, random_)};
    segment.rank = rank;
    segment.bias = Bf16Numbers(rows, 10, random_);
    segment.lorc_a = Bf16Numbers(rows * rank, 1, random_);
    segment.lorc_b = Bf16Numbers(rank * cols, 0.3f, random_);
    return segment;
  }

  // For sparse integer activations and weights that make all sums exact.
  void ExpectExactProducts(const std::vector<HostSegment>& segments) {
    const Prepared weights(segments);
    const Input input = MakeInput(64, segments[0].weight.cols, [&] {
      return random_() % 16 == 0 ? static_cast<float>(static_cast<int>(random_() % 5) - 2) : 0.f;
    });
    const Reference reference = Multiply(segments, input);
    const int64_t rows = weights.linear().rows;
    for (const int64_t tokens : {1, 8, 9, 17, 33, 64}) {
      SCOPED_TRACE(StrCat(segments.size(), " segments, ", tokens, " tokens"));
      const std::vector<double> expected(reference.y.begin(), reference.y.begin() + tokens * rows);
      ExpectExactly(expected, Product(weights, TakeTokens(input, 0, tokens)), rows);
      if (HasFailure()) return;
    }
  }

  uint32_t seed_ = std::random_device{}();
  Random random_{seed_};
  testing::ScopedTrace trace_{__FILE__, __LINE__, StrCat("seed ", seed_)};
};

// Small integers everywhere: B's two E4M3 numbers, t in bf16 and every sum are exact, so that each
// factor and bias must be where it belongs.
TEST_F(DecodeLorc, IntegersOfSegmentsAreExact) {
  constexpr int64_t kCols = 520;
  for (const ScaleConstraint constraint : {ScaleConstraint::kM2, ScaleConstraint::kNone}) {
    const WeightSpec spec = Spec(Format::kE2M1, 128, constraint);
    const auto segment = [&](int64_t rows, int rank, bool bias) {
      HostSegment s{RandomMatrix(spec, rows, kCols, 0, false, random_)};
      s.rank = rank;
      if (bias) s.bias = Integers(rows, 100, random_);
      s.lorc_a = Integers(rows * rank, 2, random_);
      s.lorc_b = Integers(rank * kCols, 2, random_);
      return s;
    };
    for (const int rank : {1, 15, 16, 17, 32, 33, 64}) {
      SCOPED_TRACE(StrCat(ScaleConstraintName(constraint), ", rank ", rank));
      ExpectExactProducts({segment(150, rank, true)});
      ExpectExactProducts({segment(100, rank, true), segment(64, 0, false), segment(72, 40, true)});
      ExpectExactProducts({segment(64, 0, true), segment(200, rank, false), segment(33, 16, true),
                           segment(65, rank, true)});
      if (HasFailure()) return;
    }
  }
}

// LoRC alone, of zero weights, against B in bf16 as it was given: B's two E4M3 numbers lose up to
// 2^-8 of each number and t's rounding to bf16 2^-9, both at random, so that their L2 norms add up
// to sqrt(2^-16 + 2^-18) < 4.4e-3 at most. bf16 outputs round once more.
TEST_F(DecodeLorc, IsAsCloseAsItsRoundings) {
  for (const int rank : {1, 16, 24, 64}) {
    for (const int64_t cols : {520, 4096}) {
      std::vector<HostSegment> segments = {RandomSegment(200, cols, rank)};
      std::fill(segments[0].weight.codes.begin(), segments[0].weight.codes.end(), 0);
      segments[0].bias.clear();
      const Prepared weights(segments);
      const Input input = RandomInput(64, cols);
      const Reference reference = Multiply(segments, input);
      const Output output = Product(weights, input);
      const double error = RelativeError(reference.y, output.f32);
      std::printf("LoRC rank %d, %d columns: error %.2e\n", rank, static_cast<int>(cols), error);
      EXPECT_LT(error, 4.4e-3) << "rank " << rank << ", " << cols << " columns";
      EXPECT_LT(RelativeError(reference.y, ToFloats(output.bf16)), 6.4e-3);
    }
  }
}

bool SameBits(const Output& a, const Output& b) {
  return a.f32.size() == b.f32.size() &&
         std::memcmp(a.f32.data(), b.f32.data(), a.f32.size() * 4) == 0 &&
         std::memcmp(a.bf16.data(), b.bf16.data(), a.bf16.size() * 2) == 0;
}

// Launches of two linears, with and without overlap, that share one workspace in a graph: each
// replay gives the bits of launches alone.
TEST_F(DecodeLorc, GraphsReplayWithOneWorkspace) {
  const Prepared first({RandomSegment(300, 1024, 16), RandomSegment(100, 1024, 40)});
  const Prepared second({RandomSegment(4096, 520, 64)});
  struct Step {
    const Prepared* weights;
    Input input;
    Output alone;
    std::unique_ptr<DeviceCall> call;
  };
  std::vector<Step> steps;
  size_t bytes = 0;
  for (const int64_t tokens : {1, 64, 5, 17, 33}) {
    for (const Prepared* weights : {&first, &second, &first}) {
      Input input = RandomInput(tokens, weights->linear().cols);
      Output alone = Product(*weights, input);
      auto call = std::make_unique<DeviceCall>(weights->linear(), input);
      steps.push_back({weights, std::move(input), std::move(alone), std::move(call)});
      bytes = std::max(bytes, WorkspaceBytes(weights->linear(), tokens));
    }
  }
  Workspace workspace(bytes);
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  ExpectCuda(cudaStreamCreate(&stream));
  ExpectCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (size_t i = 0; i < steps.size(); ++i) {
    for (const bool as_f32 : {true, false}) {
      LinearCall call = steps[i].call->Call(workspace.data(), as_f32);
      call.overlap_previous = i % 3 != 0;
      EXPECT_EQ(Launch(steps[i].weights->linear(), call, stream), absl::OkStatus());
    }
  }
  ExpectCuda(cudaStreamEndCapture(stream, &graph));
  ExpectCuda(cudaGraphInstantiate(&exec, graph, 0));
  for (int replay = 0; replay < 5; ++replay) {
    for (const Step& step : steps) step.call->Poison();
    ExpectCuda(cudaDeviceSynchronize());
    ExpectCuda(cudaGraphLaunch(exec, stream));
    ExpectCuda(cudaStreamSynchronize(stream));
    for (size_t i = 0; i < steps.size(); ++i) {
      EXPECT_TRUE(SameBits(steps[i].alone, steps[i].call->Read()))
          << "replay " << replay << " step " << i;
    }
    workspace.ExpectZeroCounters();
    if (HasFailure()) break;
  }
  ExpectCuda(cudaGraphExecDestroy(exec));
  ExpectCuda(cudaGraphDestroy(graph));
  ExpectCuda(cudaStreamDestroy(stream));
}

}  // namespace
}  // namespace nibble::w4a8
