#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "quant/gptq/gptq.h"
#include "quant/gptq/solver.h"
#include "tests/quant/gptq/test_util.h"

namespace nibble {
namespace {

TEST(HessianTest, SumsOuterProductsOverBatches) {
  const at::Tensor x = RandomNormal(50, 300, 1);  // wider than one strip
  Hessian hessian(300);
  hessian.Accumulate(x.slice(0, 0, 20));
  hessian.Accumulate(x.slice(0, 20, 50));
  EXPECT_EQ(hessian.tokens(), 50);
  const at::Tensor found = hessian.matrix();
  const at::Tensor exact = x.to(at::kDouble).t().mm(x.to(at::kDouble));
  // 50 f32 products of numbers below 5 each, half an ulp of the sum's partial values.
  EXPECT_LT((found.to(at::kDouble) - exact).abs().max().item<double>(), 50 * 25 * 6e-8 * 4);
  EXPECT_TRUE(found.equal(found.t()));
}

// With H = [[2, 1], [1, 2]] the inverse is [[2, -1], [-1, 2]] / 3; U^T U of it has
// U = [[sqrt(2/3), -1/sqrt(6)], [0, sqrt(1/2)]].
TEST(FactorHessianTest, IsTheUpperFactorOfTheInverse) {
  GptqOptions options;
  options.damping = 1e-12;
  const auto factor =
      FactorHessian("layer", at::tensor({2.f, 1.f, 1.f, 2.f}).view({2, 2}), options);
  ASSERT_TRUE(factor.ok()) << factor.status();
  const at::Tensor u = factor->hinv_upper;
  EXPECT_FLOAT_EQ(u[0][0].item<float>(), std::sqrt(2.0f / 3));
  EXPECT_FLOAT_EQ(u[0][1].item<float>(), -1 / std::sqrt(6.0f));
  EXPECT_EQ(u[1][0].item<float>(), 0);
  EXPECT_FLOAT_EQ(u[1][1].item<float>(), std::sqrt(0.5f));
  EXPECT_FALSE(factor->dead.any().item<bool>());
}

// Damping by 1% of the mean diagonal: U^T U is the inverse of H + 0.01 * mean * I.
TEST(FactorHessianTest, DampsByTheMeanDiagonal) {
  const auto factor =
      FactorHessian("layer", at::tensor({3.f, 0.f, 0.f, 1.f}).view({2, 2}), GptqOptions());
  ASSERT_TRUE(factor.ok());
  EXPECT_FLOAT_EQ(factor->hinv_upper[0][0].item<float>(), 1 / std::sqrt(3.02f));
  EXPECT_FLOAT_EQ(factor->hinv_upper[1][1].item<float>(), 1 / std::sqrt(1.02f));
  EXPECT_EQ(factor->damping, 0.01);
}

TEST(FactorHessianTest, DeadInputsHaveDiagonalOne) {
  GptqOptions options;
  options.act_order = false;
  const auto factor =
      FactorHessian("layer", at::tensor({0.f, 0.f, 0.f, 3.f}).view({2, 2}), options);
  ASSERT_TRUE(factor.ok());
  EXPECT_TRUE(factor->dead[0].item<bool>());
  EXPECT_FALSE(factor->dead[1].item<bool>());
  EXPECT_FLOAT_EQ(factor->hinv_upper[0][0].item<float>(), 1 / std::sqrt(1.02f));
}

at::Tensor WithOffDiagonal(float a) { return at::tensor({1.f, a, a, 1.f}).view({2, 2}); }

// The eigenvalues are 1 - a and 1 + a: a damping above a - 1 is needed.
TEST(FactorHessianTest, EscalatesDampingTenfoldAndSaysSo) {
  auto factor = FactorHessian("layer", WithOffDiagonal(1.05f), GptqOptions());
  ASSERT_TRUE(factor.ok()) << factor.status();
  EXPECT_DOUBLE_EQ(factor->damping, 0.1);
  EXPECT_EQ(factor->damping_escalations, 1);
  factor = FactorHessian("layer", WithOffDiagonal(1.5f), GptqOptions());
  ASSERT_TRUE(factor.ok()) << factor.status();
  EXPECT_DOUBLE_EQ(factor->damping, 1);
  EXPECT_EQ(factor->damping_escalations, 2);

  const auto quantized =
      QuantizeGptq("layer", at::ones({1, 2}), *factor,
                   Spec(Format::kE2M1, kWholeRow, ScaleConstraint::kM2), GptqOptions());
  ASSERT_TRUE(quantized.ok());
  EXPECT_EQ(quantized->damping, factor->damping);
  EXPECT_EQ(quantized->damping_escalations, 2);
}

TEST(FactorHessianTest, FailsWithTheLayersNamePastDampingOne) {
  const absl::Status status =
      FactorHessian("layers.4.down_proj", WithOffDiagonal(3), GptqOptions()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(std::string(status.message()).find("layers.4.down_proj"), std::string::npos) << status;
}

TEST(FactorHessianTest, RefusesBadInput) {
  at::Tensor h = at::eye(4);
  h[1][2] = std::numeric_limits<float>::quiet_NaN();
  ExpectRefused(FactorHessian("layers.4.q_proj", h, GptqOptions()).status(), "layers.4.q_proj");
  ExpectRefused(FactorHessian("layers.4.q_proj", at::zeros({2, 3}), GptqOptions()).status(),
                "expected a square matrix");
  for (const double damping : {0.0, -1.0, 2.0, std::nan("")}) {
    GptqOptions options;
    options.damping = damping;
    ExpectRefused(FactorHessian("layers.4.q_proj", at::eye(4), options).status(), "damping is");
  }
}

std::vector<int64_t> Ends(const std::vector<ColumnBlock>& blocks) {
  std::vector<int64_t> ends;
  for (const ColumnBlock& block : blocks) ends.push_back(block.end);
  return ends;
}

TEST(MakeBlocksTest, CutsABlockBeforeAGroupThatReachesBeyondIt) {
  const auto updated = ScaleSource::kUpdatedWeights;
  EXPECT_EQ(Ends(MakeBlocks(300, 100, 64, updated)),
            (std::vector<int64_t>{64, 128, 192, 256, 300}));
  EXPECT_EQ(Ends(MakeBlocks(300, 100, 64, ScaleSource::kOriginalWeights)),
            (std::vector<int64_t>{100, 200, 300}));
  EXPECT_EQ(Ends(MakeBlocks(300, 128, 16, updated)), (std::vector<int64_t>{128, 256, 300}));
  EXPECT_EQ(Ends(MakeBlocks(600, 128, 256, updated)),
            (std::vector<int64_t>{128, 256, 384, 512, 600}));
  EXPECT_EQ(Ends(MakeBlocks(300, 128, kWholeRow, updated)), (std::vector<int64_t>{128, 256, 300}));
  EXPECT_EQ(Ends(MakeBlocks(120, 128, 64, updated)), (std::vector<int64_t>{120}));
}

// Against the outputs themselves: ||X (W - What)^T||^2 / ||X W^T||^2.
TEST(RelativeErrorTest, IsThatOfTheOutputs) {
  const at::Tensor x = RandomNormal(40, 12, 1);
  const at::Tensor w = RandomNormal(5, 12, 2);
  const at::Tensor w_hat = w + 0.1 * RandomNormal(5, 12, 3);
  const double output = x.mm((w - w_hat).t()).square().sum().item<double>() /
                        x.mm(w.t()).square().sum().item<double>();
  // 1e-5: f32 sums of a few hundred products.
  EXPECT_NEAR(RelativeOutputError(w, w_hat, x.t().mm(x)) / output, 1, 1e-5);
  EXPECT_NEAR(RelativeWeightError(w, w_hat),
              (w - w_hat).norm().item<double>() / w.norm().item<double>(), 1e-6);
  EXPECT_EQ(RelativeOutputError(at::zeros({2, 12}), at::zeros({2, 12}), x.t().mm(x)), 0);
  EXPECT_EQ(RelativeWeightError(w, w), 0);
}

}  // namespace
}  // namespace nibble
