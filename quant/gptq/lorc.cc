#include <algorithm>
#include <utility>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/base/torch_status.h"
#include "quant/gptq/factor.h"
#include "quant/gptq/gptq.h"
#include "quant/gptq/left_vectors.h"

namespace nibble {
namespace {

// Above so many rows and columns a GPU iterates.
constexpr int64_t kExactSide = 512;

// In f64, or by iteration in f32.
LeftVectors LeadingLeftVectors(const at::Tensor& m, int64_t rank) {
  const bool iterate = m.is_cuda() && std::min(m.size(0), m.size(1)) > kExactSide;
  return iterate ? IteratedLeftVectors(m.to(at::kFloat), rank)
                 : ExactLeftVectors(m.to(at::kDouble), rank);
}

// E R: in f64 on the CPU, in f32 on a GPU.
at::Tensor Times(const at::Tensor& error, const at::Tensor& root) {
  const at::ScalarType type = error.is_cuda() ? at::kFloat : at::kDouble;
  return error.to(type).mm(root.to(type));
}

// R of the damped H = R R^T: the Frobenius norm of E R is the error of the outputs.
absl::StatusOr<DampedFactor> MetricRoot(const std::string& name, const at::Tensor& hessian,
                                        int64_t cols) {
  NIBBLE_ASSIGN_OR_RETURN(at::Tensor revived, ReviveDeadInputs(name, hessian));
  if (revived.size(0) != cols) {
    return absl::InvalidArgumentError(
        StrCat(name, ": Hessian of ", revived.size(0), " columns; expected ", cols));
  }
  return FactorDamped(name, std::move(revived), GptqOptions().damping, Cholesky);
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
    at::Tensor m = error;
    LorcFactors result;
    if (metric == LorcMetric::kInput) {
      NIBBLE_ASSIGN_OR_RETURN(const DampedFactor root, MetricRoot(name, hessian, error.size(1)));
      m = Times(error, root.factor);
      result.damping = root.damping;
      result.damping_escalations = root.escalations;
    }
    const LeftVectors left = LeadingLeftVectors(m, rank);
    const at::Tensor split = left.values.sqrt();
    const at::Tensor b = left.vectors.t().mm(error.to(left.vectors.scalar_type())) *
                         InverseOrZero(split).unsqueeze(1);
    result.a = (left.vectors * split).to(at::kBFloat16).contiguous();
    result.b = b.to(at::kBFloat16).contiguous();
    return result;
  });
}

}  // namespace nibble
