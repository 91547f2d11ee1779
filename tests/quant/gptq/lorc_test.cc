#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "quant/gptq/gptq.h"
#include "tests/quant/gptq/test_util.h"

namespace nibble {
namespace {

struct Product {
  at::Tensor value;  // A B in f64
  // ||AB - A'B'||_F is at most this for the unrounded factors A', B': bf16 keeps 8 bits, so each
  // factor is off by 2^-9 of itself at most.
  double rounding = 0;
};

Product Multiply(const LorcFactors& factors) {
  EXPECT_EQ(factors.a.scalar_type(), at::kBFloat16);
  EXPECT_EQ(factors.b.scalar_type(), at::kBFloat16);
  const at::Tensor a = factors.a.to(at::kDouble);
  const at::Tensor b = factors.b.to(at::kDouble);
  const double relative = 2.01 * std::exp2(-9);
  return {a.mm(b), relative * a.abs().mm(b.abs()).norm().item<double>()};
}

LorcFactors Factors(const at::Tensor& error, int64_t rank, LorcMetric metric,
                    const at::Tensor& hessian = {}) {
  auto factors = ComputeLorc("layer", error, rank, metric, hessian);
  EXPECT_TRUE(factors.ok()) << factors.status();
  return *std::move(factors);
}

double Norm(const at::Tensor& x) { return x.norm().item<double>(); }

// sqrt of the sum of the squared singular values behind the first `rank`.
double Tail(const at::Tensor& m, int64_t rank) {
  return Norm(std::get<1>(at::linalg_svd(m.to(at::kDouble), false)).slice(0, rank));
}

// Lower Cholesky factor of H damped by 1% of its mean diagonal.
at::Tensor DampedRoot(const at::Tensor& hessian) {
  at::Tensor damped = hessian.to(at::kDouble);
  damped.diagonal().add_(0.01 * damped.diagonal().mean());
  return at::linalg_cholesky(damped);
}

TEST(ComputeLorcTest, FullRankReproducesTheError) {
  const at::Tensor h = CorrelatedHessian(24, 1);
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{16, 24}, {40, 24}, {24, 24}}) {
    const at::Tensor e = RandomNormal(rows, cols, 5);
    for (const auto metric : {LorcMetric::kWeight, LorcMetric::kInput}) {
      const LorcFactors factors = Factors(e, std::min(rows, cols), metric, h);
      EXPECT_EQ(factors.a.size(0), rows);
      EXPECT_EQ(factors.b.size(1), cols);
      const Product product = Multiply(factors);
      EXPECT_LT(Norm(product.value - e), product.rounding) << rows << " x " << cols;
    }
  }
}

TEST(ComputeLorcTest, WeightMetricLeavesTheSingularValueTail) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{30, 50}, {50, 30}}) {
    const at::Tensor e = RandomNormal(rows, cols, 6);
    for (const int64_t rank : {1, 4, 20}) {
      const Product product = Multiply(Factors(e, rank, LorcMetric::kWeight));
      EXPECT_NEAR(Norm(product.value - e), Tail(e, rank), product.rounding) << "rank " << rank;
    }
  }
}

TEST(ComputeLorcTest, SingularValuesAreSplitBetweenTheFactors) {
  // E = diag(9, 4): A and B have columns and rows of norm 3 and 2.
  const at::Tensor e = at::tensor({0.f, 4.f, 9.f, 0.f}).view({2, 2});
  const LorcFactors factors = Factors(e, 2, LorcMetric::kWeight);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(factors.a.select(1, i).norm().item<float>(), 3 - i);
    EXPECT_EQ(factors.b.select(0, i).norm().item<float>(), 3 - i);
  }
  EXPECT_TRUE(factors.a.mm(factors.b).to(at::kFloat).equal(e));
}

// ||(E - AB) R|| is the tail of E R's singular values: no factors of this rank do better.
TEST(ComputeLorcTest, InputMetricLeavesTheTailInTheMetricOfH) {
  const uint64_t seed = 12;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  const at::Tensor h = CorrelatedHessian(48, seed);
  const at::Tensor root = DampedRoot(h);
  for (const int64_t rows : {32, 80}) {
    const at::Tensor e = RandomNormal(rows, 48, seed + 9);
    for (const int64_t rank : {1, 8}) {
      const Product product = Multiply(Factors(e, rank, LorcMetric::kInput, h));
      const double largest = std::get<1>(at::linalg_svd(root, false))[0].item<double>();
      const double found = Norm((product.value - e).mm(root));
      EXPECT_NEAR(found, Tail(e.to(at::kDouble).mm(root), rank), product.rounding * largest);
      const Product plain = Multiply(Factors(e, rank, LorcMetric::kWeight));
      EXPECT_LT(found, Norm((plain.value - e).mm(root)));
      EXPECT_LT(RelativeOutputError(e, product.value.to(at::kFloat), h),
                RelativeOutputError(e, plain.value.to(at::kFloat), h));
    }
  }
}

TEST(ComputeLorcTest, ZeroErrorAndDeadInputsGiveFiniteFactors) {
  const LorcFactors zero = Factors(at::zeros({6, 8}), 3, LorcMetric::kWeight);
  EXPECT_EQ(zero.a.abs().max().item<float>(), 0);
  EXPECT_EQ(zero.b.abs().max().item<float>(), 0);
  const LorcFactors dead = Factors(RandomNormal(8, 6, 1), 6, LorcMetric::kInput, at::zeros({6, 6}));
  EXPECT_TRUE(dead.b.isfinite().all().item<bool>());
  // A matrix of rank 1 asked for 3.
  const at::Tensor e = RandomNormal(9, 1, 2).mm(RandomNormal(1, 7, 3));
  const Product product = Multiply(Factors(e, 3, LorcMetric::kWeight));
  EXPECT_LT(Norm(product.value - e), product.rounding);
}

TEST(ComputeLorcTest, InputMetricReportsEscalatedDamping) {
  // The eigenvalues of H are -0.05 and 2.05.
  const at::Tensor h = at::tensor({1.f, 1.05f, 1.05f, 1.f}).view({2, 2});
  const LorcFactors factors = Factors(at::eye(2), 1, LorcMetric::kInput, h);
  EXPECT_DOUBLE_EQ(factors.damping, 0.1);
  EXPECT_EQ(factors.damping_escalations, 1);
  const absl::Status status =
      ComputeLorc("layers.2.up_proj", at::eye(2), 1, LorcMetric::kInput, 3 * h - 2 * at::eye(2))
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(std::string(status.message()).find("layers.2.up_proj"), std::string::npos) << status;
}

TEST(ComputeLorcTest, RefusesBadInputWithTheLayersName) {
  const at::Tensor e = RandomNormal(4, 6, 1);
  for (const int64_t rank : {-1, 0, 5}) {
    ExpectRefused(ComputeLorc("layers.2.up_proj", e, rank, LorcMetric::kWeight, {}).status(),
                  "layers.2.up_proj: LoRC rank is " + std::to_string(rank) + "; expected 1..4");
  }
  ExpectRefused(ComputeLorc("layers.2.up_proj", e, 2, LorcMetric::kInput, at::eye(4)).status(),
                "layers.2.up_proj: Hessian of 4 columns; expected 6");
  at::Tensor bad = e.clone();
  bad[0][0] = std::numeric_limits<float>::quiet_NaN();
  ExpectRefused(ComputeLorc("layers.2.up_proj", bad, 2, LorcMetric::kWeight, {}).status(),
                "layers.2.up_proj");
}

}  // namespace
}  // namespace nibble
