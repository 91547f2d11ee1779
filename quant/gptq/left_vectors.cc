#include "quant/gptq/left_vectors.h"

#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace nibble {
namespace {

// A symmetric matrix A = side side^T, with `side` [n, k] the smaller side of M first.
at::Tensor Apply(const at::Tensor& side, const at::Tensor& x) { return side.mm(side.t().mm(x)); }

struct Ritz {
  at::Tensor vectors;  // f32 [n, b], orthonormal
  at::Tensor
      values;  // f64 [b] on the CPU, falling: estimates of A's largest eigenvalues from below
};

// eigh of a small matrix, values falling. On the CPU, which is faster for so few rows.
std::pair<at::Tensor, at::Tensor> SmallEigh(const at::Tensor& matrix) {
  auto [values, vectors] = at::linalg_eigh(matrix.cpu());  // rising
  return {values.flip(0).clamp_min(0), vectors.flip(1)};
}

// Best approximations to A's eigenvectors in the span of y [n, b].
Ritz RayleighRitz(const at::Tensor& side, const at::Tensor& y) {
  at::Tensor x = y.to(at::kDouble);
  x = x * InverseOrZero(x.norm(2, {0}));
  const auto [sizes, turn] = SmallEigh(x.t().mm(x));
  // Directions that rounding alone has left are dropped.
  const at::Tensor kept = at::where(sizes > 1e-12 * sizes[0], sizes, at::zeros_like(sizes));
  x = x.mm((turn * InverseOrZero(kept.sqrt())).to(x.device())).to(at::kFloat);
  const at::Tensor projected = side.t().mm(x).to(at::kDouble);
  auto [values, rotation] = SmallEigh(projected.t().mm(projected));
  return {x.mm(rotation.to(x.device(), at::kFloat)), values};
}

// The Chebyshev polynomial of A that is small on eigenvalues in 0..cutoff and 1 at `largest`, times
// x, in the scaled recurrence of Zhou and Saad (2007).
at::Tensor Filter(const at::Tensor& side, const at::Tensor& x, double cutoff, double largest,
                  int degree) {
  const double half = cutoff / 2;
  const double first = half / (largest - half);
  double sigma = first;
  at::Tensor before = x;
  at::Tensor now = (Apply(side, x) - half * x) * (first / half);
  for (int i = 2; i <= degree; ++i) {
    const double next_sigma = 1 / (2 / first - sigma);
    at::Tensor next =
        (Apply(side, now) - half * now) * (2 * next_sigma / half) - (sigma * next_sigma) * before;
    before = std::exchange(now, std::move(next));
    sigma = next_sigma;
  }
  return now;
}

// So high that the largest eigenvalue grows at most 10^4-fold over the cutoff: f32 keeps the
// others.
int FilterDegree(double cutoff, double largest) {
  constexpr int kMost = 16;
  const double growth = std::acosh(std::max(2 * largest / cutoff - 1, 1.0));
  const double degree = std::acosh(1e4) / std::max(growth, 1e-3);
  return std::clamp(static_cast<int>(degree), 1, kMost);
}

}  // namespace

at::Tensor InverseOrZero(const at::Tensor& x) {
  return at::where(x > 0, x.reciprocal(), at::zeros_like(x));
}

LeftVectors ExactLeftVectors(const at::Tensor& m, int64_t rank) {
  const bool wide = m.size(0) <= m.size(1);
  const at::Tensor gram = wide ? m.mm(m.t()) : m.t().mm(m);
  auto [eigenvalues, eigenvectors] = at::linalg_eigh(gram);  // rising
  const int64_t first = eigenvalues.size(0) - rank;
  const at::Tensor values = eigenvalues.slice(0, first).flip(0).clamp_min(0).sqrt();
  at::Tensor vectors = eigenvectors.slice(1, first).flip(1);
  if (!wide) vectors = m.mm(vectors) * InverseOrZero(values);
  return {vectors, values};
}

LeftVectors IteratedLeftVectors(const at::Tensor& m, int64_t rank) {
  constexpr uint64_t kSeed = 20230719;
  constexpr int kMostRounds = 12;
  constexpr double kSettled = 1e-4;  // growth of the captured energy in a round
  const bool wide = m.size(0) <= m.size(1);
  const at::Tensor side = wide ? m : m.t();
  const int64_t block = std::min(side.size(0), rank + 16 + rank / 4);
  const at::Tensor start =
      at::randn({side.size(0), block}, at::make_generator<at::CPUGeneratorImpl>(kSeed));
  Ritz ritz = RayleighRitz(side, Apply(side, start.to(m.device())));
  double energy = 0;
  for (int round = 0; round < kMostRounds; ++round) {
    const double before = std::exchange(energy, ritz.values.slice(0, 0, rank).sum().item<double>());
    const double largest = ritz.values[0].item<double>();
    const double cutoff = ritz.values[block - 1].item<double>();
    if (cutoff <= 0 || energy - before <= kSettled * energy) break;
    ritz = RayleighRitz(side,
                        Filter(side, ritz.vectors, cutoff, largest, FilterDegree(cutoff, largest)));
  }
  const at::Tensor values = ritz.values.slice(0, 0, rank).sqrt().to(m.device(), at::kFloat);
  at::Tensor vectors = ritz.vectors.slice(1, 0, rank);
  if (!wide) vectors = m.mm(vectors) * InverseOrZero(values);
  return {vectors, values};
}

}  // namespace nibble
