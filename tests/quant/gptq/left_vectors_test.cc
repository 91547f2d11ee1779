#include "quant/gptq/left_vectors.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

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

void ExpectNearlyTheBest(const at::Tensor& m, const std::vector<int64_t>& ranks,
                         const std::string& what) {
  const LeftVectors exact = ExactLeftVectors(m.to(at::kDouble), ranks.back());
  for (const int64_t rank : ranks) {
    SCOPED_TRACE(testing::Message() << what << " rank " << rank);
    const LeftVectors iterated = IteratedLeftVectors(m, rank);
    const double best = exact.values.slice(0, 0, rank).square().sum().item<double>();
    EXPECT_GT(Captured(m, iterated.vectors), (1 - 1e-3) * best);
    EXPECT_NEAR(iterated.values.square().sum().item<double>(), best, 1e-3 * best);
    // Orthonormal; a vector is zero at most where f32 does not see its value beside the largest.
    at::Tensor overlap = iterated.vectors.t().mm(iterated.vectors);
    const at::Tensor seen = iterated.values > 1e-5 * iterated.values[0];
    EXPECT_LT((overlap.diagonal() - 1).masked_select(seen).abs().max().item<double>(), 1e-3);
    overlap.fill_diagonal_(0);
    EXPECT_LT(overlap.abs().max().item<double>(), 1e-3);
  }
}

// The hardest: no gap at all between the values that are wanted and the next.
TEST(IteratedLeftVectorsTest, RandomMatrices) {
  ExpectNearlyTheBest(RandomNormal(640, 420, 3), {1, 8, 64}, "tall");
  ExpectNearlyTheBest(RandomNormal(420, 640, 3), {1, 8, 64}, "wide");
  ExpectNearlyTheBest(RandomNormal(500, 500, 3), {8, 128}, "square");
}

TEST(IteratedLeftVectorsTest, DecayingSpectra) {
  for (const double power : {0.1, 0.5, 1.0, 3.0}) {
    ExpectNearlyTheBest(Decaying(500, 400, power, 4), {1, 8, 64},
                        "decaying with power " + std::to_string(power));
  }
}

TEST(IteratedLeftVectorsTest, FewerValuesThanWanted) {
  const at::Tensor m = RandomNormal(300, 2, 5).mm(RandomNormal(2, 400, 6));
  const LeftVectors left = IteratedLeftVectors(m, 8);
  EXPECT_NEAR(Captured(m, left.vectors), m.square().sum(at::kDouble).item<double>(),
              1e-3 * m.square().sum().item<double>());
  EXPECT_TRUE(left.vectors.isfinite().all().item<bool>());
  const LeftVectors nothing = IteratedLeftVectors(at::zeros({300, 400}), 8);
  EXPECT_EQ(nothing.values.abs().max().item<float>(), 0);
  EXPECT_TRUE(nothing.vectors.isfinite().all().item<bool>());
}

}  // namespace
}  // namespace nibble
