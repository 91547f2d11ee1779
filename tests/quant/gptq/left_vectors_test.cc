#include "quant/gptq/left_vectors.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/quant/gptq/test_util.h"

namespace nibble {
namespace {

// ||V^T M||^2: the energy of M that the vectors capture, whatever the values claim.
double Captured(const at::Tensor& m, const at::Tensor& vectors) {
  return vectors.to(at::kDouble).t().mm(m.to(at::kDouble)).square().sum().item<double>();
}

// Singular values 1, 2^-p, 3^-p, ... in random directions.
at::Tensor Decaying(int64_t rows, int64_t cols, double power, uint64_t seed) {
  const int64_t rank = std::min(rows, cols);
  const at::Tensor left = std::get<0>(at::linalg_qr(RandomNormal(rows, rank, seed)));
  const at::Tensor right = std::get<0>(at::linalg_qr(RandomNormal(cols, rank, seed + 1)));
  const at::Tensor values = at::arange(1, rank + 1, at::kFloat).pow(-power);
  return (left * values).mm(right.t()).contiguous();
}

void ExpectNearlyTheBest(const at::Tensor& m, int64_t rank, const std::string& what) {
  const LeftVectors exact = ExactLeftVectors(m.to(at::kDouble), rank);
  const LeftVectors iterated = IteratedLeftVectors(m, rank);
  const double best = Captured(m, exact.vectors);
  EXPECT_GT(Captured(m, iterated.vectors), (1 - 1e-3) * best) << what << " rank " << rank;
  EXPECT_NEAR(iterated.values.square().sum().item<double>(), best, 2e-3 * best)
      << what << " rank " << rank;
  const at::Tensor overlap = iterated.vectors.t().mm(iterated.vectors);
  EXPECT_LT((overlap - at::eye(rank)).abs().max().item<double>(), 1e-3) << what;
}

// The hardest: no gap at all between the values that are wanted and the next.
TEST(IteratedLeftVectorsTest, RandomMatrices) {
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{900, 640}, {640, 900}, {1000, 1000}}) {
    const at::Tensor m = RandomNormal(rows, cols, 3);
    for (const int64_t rank : {1, 8, 32, 128}) ExpectNearlyTheBest(m, rank, "random");
  }
}

TEST(IteratedLeftVectorsTest, DecayingSpectra) {
  for (const double power : {0.1, 0.5, 1.0, 3.0}) {
    const at::Tensor m = Decaying(700, 520, power, 4);
    for (const int64_t rank : {1, 8, 64}) {
      ExpectNearlyTheBest(m, rank, "decaying with power " + std::to_string(power));
    }
  }
}

TEST(IteratedLeftVectorsTest, FewerValuesThanWanted) {
  const at::Tensor m = RandomNormal(600, 2, 5).mm(RandomNormal(2, 700, 6));
  const LeftVectors left = IteratedLeftVectors(m, 8);
  EXPECT_NEAR(Captured(m, left.vectors), m.square().sum(at::kDouble).item<double>(),
              1e-3 * m.square().sum().item<double>());
  EXPECT_TRUE(left.vectors.isfinite().all().item<bool>());
  const LeftVectors nothing = IteratedLeftVectors(at::zeros({600, 700}), 8);
  EXPECT_EQ(nothing.values.abs().max().item<float>(), 0);
  EXPECT_TRUE(nothing.vectors.isfinite().all().item<bool>());
}

}  // namespace
}  // namespace nibble
