#include <algorithm>
#include <cmath>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/base/torch_status.h"
#include "quant/gptq/factor.h"
#include "quant/gptq/gptq.h"

namespace nibble {

Hessian::Hessian(int64_t cols) : upper_(at::zeros({cols, cols}, at::kFloat)) {}

void Hessian::Accumulate(const at::Tensor& x) {
  c10::InferenceMode guard;
  // Strips of the upper triangle: a little over half of the whole product.
  constexpr int64_t kStrip = 256;
  const int64_t cols = upper_.size(0);
  for (int64_t begin = 0; begin < cols; begin += kStrip) {
    const int64_t rows = std::min(kStrip, cols - begin);
    at::Tensor strip = upper_.narrow(0, begin, rows).narrow(1, begin, cols - begin);
    strip.addmm_(x.narrow(1, begin, rows).t(), x.narrow(1, begin, cols - begin));
  }
  tokens_ += x.size(0);
}

at::Tensor Hessian::matrix() const {
  c10::InferenceMode guard;
  return upper_.triu() + upper_.triu(1).t();
}

absl::StatusOr<at::Tensor> ReviveDeadInputs(const std::string& name, const at::Tensor& hessian) {
  if (hessian.dim() != 2 || hessian.size(0) != hessian.size(1)) {
    return absl::InvalidArgumentError(StrCat(name, ": Hessian has ", hessian.dim(),
                                             " dimensions and ", hessian.numel(),
                                             " elements; expected a square matrix"));
  }
  if (!hessian.isfinite().all().item<bool>()) {
    return absl::InvalidArgumentError(
        StrCat(name, ": Hessian holds a NaN or an infinity; expected finite numbers"));
  }
  at::Tensor revived = hessian.to(at::kDouble, /*non_blocking=*/false, /*copy=*/true);
  at::Tensor diagonal = revived.diagonal();
  diagonal.masked_fill_(diagonal == 0, 1.0);
  return revived;
}

at::Tensor Cholesky(const at::Tensor& matrix, Triangle triangle) {
  auto [factor, info] = at::linalg_cholesky_ex(matrix, triangle == Triangle::kUpper);
  if (info.item<int>() != 0 || !factor.isfinite().all().item<bool>()) return {};
  return factor;
}

absl::StatusOr<DampedFactor> FactorDamped(
    const std::string& name, const at::Tensor& hessian, double damping,
    const std::function<at::Tensor(const at::Tensor&)>& factorize) {
  if (!(damping > 0 && damping <= 1)) {
    return absl::InvalidArgumentError(
        StrCat(name, ": damping is ", damping, "; expected more than 0 and at most 1"));
  }
  constexpr double kLargest = 1.0 + 1e-9;  // ten times 0.1 may round above 1
  const double mean = hessian.diagonal().mean().item<double>();
  for (int escalations = 0; damping <= kLargest; ++escalations, damping *= 10) {
    at::Tensor damped = hessian.clone();
    damped.diagonal().add_(damping * mean);
    at::Tensor factor = factorize(damped);
    if (factor.defined()) return DampedFactor{std::move(factor), damping, escalations};
  }
  return absl::FailedPreconditionError(
      StrCat(name, ": the Hessian has no Cholesky factor at damping ", damping / 10,
             "; expected one at a damping of at most 1 of the mean diagonal, ", mean));
}

absl::StatusOr<GptqFactor> FactorHessian(const std::string& name, const at::Tensor& hessian,
                                         const GptqOptions& options) {
  return CatchTorch([&]() -> absl::StatusOr<GptqFactor> {
    c10::InferenceMode guard;
    NIBBLE_ASSIGN_OR_RETURN(at::Tensor revived, ReviveDeadInputs(name, hessian));
    GptqFactor result;
    result.dead = hessian.diagonal() == 0;
    result.order = options.act_order ? revived.diagonal().argsort(/*stable=*/true, /*dim=*/0,
                                                                  /*descending=*/true)
                                     : at::arange(revived.size(0), at::kLong);
    revived = revived.index_select(0, result.order).index_select(1, result.order);
    NIBBLE_ASSIGN_OR_RETURN(
        DampedFactor damped,
        FactorDamped(name, revived, options.damping, [](const at::Tensor& matrix) -> at::Tensor {
          const at::Tensor lower = Cholesky(matrix, Triangle::kLower);
          if (!lower.defined()) return {};
          return Cholesky(at::cholesky_inverse(lower), Triangle::kUpper);
        }));
    result.hinv_upper = damped.factor.to(at::kFloat).contiguous();
    result.damping = damped.damping;
    result.damping_escalations = damped.escalations;
    return result;
  });
}

}  // namespace nibble
