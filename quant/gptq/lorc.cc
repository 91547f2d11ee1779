#include <algorithm>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/base/torch_status.h"
#include "quant/gptq/factor.h"
#include "quant/gptq/gptq.h"

namespace nibble {
namespace {

struct LeftVectors {
  at::Tensor vectors;  // f64 [N, r], orthonormal; zero where the singular value is 0
  at::Tensor values;   // f64 [r], falling
};

// 1 / x, and 0 for 0.
at::Tensor InverseOrZero(const at::Tensor& x) {
  return at::where(x > 0, x.reciprocal(), at::zeros_like(x));
}

// The r leading left singular vectors of M [N, K], from the eigenvectors of the smaller of M M^T
// and M^T M. f64 holds the square of every singular value that f32 input can resolve.
LeftVectors LeadingLeftVectors(const at::Tensor& m, int64_t rank) {
  const bool wide = m.size(0) <= m.size(1);
  const at::Tensor gram = wide ? m.mm(m.t()) : m.t().mm(m);
  auto [eigenvalues, eigenvectors] = at::linalg_eigh(gram);  // rising
  const int64_t first = eigenvalues.size(0) - rank;
  const at::Tensor values = eigenvalues.slice(0, first).flip(0).clamp_min(0).sqrt();
  at::Tensor vectors = eigenvectors.slice(1, first).flip(1);
  if (!wide) vectors = m.mm(vectors) * InverseOrZero(values);
  return {vectors, values};
}

// R of the damped H = R R^T: the Frobenius norm of E R is the error of the outputs.
absl::StatusOr<DampedFactor> MetricRoot(const std::string& name, const at::Tensor& hessian,
                                        int64_t cols) {
  NIBBLE_ASSIGN_OR_RETURN(const at::Tensor revived, ReviveDeadInputs(name, hessian));
  if (revived.size(0) != cols) {
    return absl::InvalidArgumentError(
        StrCat(name, ": Hessian of ", revived.size(0), " columns; expected ", cols));
  }
  return FactorDamped(name, revived, GptqOptions().damping,
                      [](const at::Tensor& matrix) { return Cholesky(matrix, Triangle::kLower); });
}

}  // namespace

// With M = E R = U S V^T (R = I for kWeight), the best factors A = U_r sqrt(S), B = sqrt(S) V_r^T
// R^-1 have B = U_r^T E / sqrt(S): nothing needs to be inverted.
absl::StatusOr<LorcFactors> ComputeLorc(const std::string& name, const at::Tensor& error,
                                        int64_t rank, LorcMetric metric,
                                        const at::Tensor& hessian) {
  return CatchTorch([&]() -> absl::StatusOr<LorcFactors> {
    c10::InferenceMode guard;
    const int64_t largest = std::min(error.size(0), error.size(1));
    if (rank < 1 || rank > largest) {
      return absl::InvalidArgumentError(StrCat(name, ": LoRC rank is ", rank, "; expected 1..",
                                               largest, " for a ", error.size(0), " x ",
                                               error.size(1), " matrix"));
    }
    if (!error.isfinite().all().item<bool>()) {
      return absl::InvalidArgumentError(
          StrCat(name, ": the error to correct holds a NaN or an infinity"));
    }
    const at::Tensor e = error.to(at::kDouble);
    at::Tensor m = e;
    LorcFactors result;
    if (metric == LorcMetric::kInput) {
      NIBBLE_ASSIGN_OR_RETURN(const DampedFactor root, MetricRoot(name, hessian, e.size(1)));
      m = e.mm(root.factor);
      result.damping = root.damping;
      result.damping_escalations = root.escalations;
    }
    const LeftVectors left = LeadingLeftVectors(m, rank);
    const at::Tensor split = left.values.sqrt();
    const at::Tensor b = left.vectors.t().mm(e) * InverseOrZero(split).unsqueeze(1);
    result.a = (left.vectors * split).to(at::kBFloat16).contiguous();
    result.b = b.to(at::kBFloat16).contiguous();
    return result;
  });
}

}  // namespace nibble
