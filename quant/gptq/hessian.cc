#include <algorithm>
#include <cmath>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/base/torch_status.h"
#include "quant/gptq/factor.h"
#include "quant/gptq/gptq.h"

namespace nibble {

Hessian::Hessian(int64_t cols, at::Device device)
    : upper_(at::zeros({cols, cols}, at::TensorOptions(at::kFloat).device(device))) {}

void Hessian::Accumulate(const at::Tensor& x) {
  c10::InferenceMode guard;
  // Strips of the upper triangle: a little over half of the whole product.
  const int64_t strip_rows = x.is_cuda() ? 1024 : 256;
  const int64_t cols = upper_.size(0);
  for (int64_t begin = 0; begin < cols; begin += strip_rows) {
    const int64_t rows = std::min(strip_rows, cols - begin);
    at::Tensor strip = upper_.narrow(0, begin, rows).narrow(1, begin, cols - begin);
    const at::Tensor left = x.narrow(1, begin, rows).t();
    const at::Tensor right = x.narrow(1, begin, cols - begin);
    if (x.scalar_type() == at::kFloat) {
      strip.addmm_(left, right);
    } else {
      strip.add_(at::mm(left, right, at::kFloat));
    }
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

at::Tensor Cholesky(const at::Tensor& matrix) {
  auto [factor, info] = at::linalg_cholesky_ex(matrix);
  if (info.item<int>() != 0 || !factor.isfinite().all().item<bool>()) return {};
  return factor;
}

namespace {

// The upper Cholesky factor U of H^-1 = U^T U, or an undefined tensor when there is none. With J
// the reversal of all columns and J H J = L L^T, R = J L J is upper, H = R R^T, and U = R^-1.
at::Tensor InverseFactor(const at::Tensor& hessian) {
  at::Tensor root = Cholesky(hessian.flip({0, 1}));
  if (!root.defined()) return {};
  root = root.flip({0, 1});
  at::Tensor factor =
      at::linalg_solve_triangular(root, at::eye(root.size(0), root.options()), /*upper=*/true);
  return factor.isfinite().all().item<bool>() ? factor : at::Tensor();
}

}  // namespace

absl::StatusOr<DampedFactor> FactorDamped(
    const std::string& name, at::Tensor hessian, double damping,
    const std::function<at::Tensor(const at::Tensor&)>& factorize) {
  if (!(damping > 0 && damping <= 1)) {
    return absl::InvalidArgumentError(
        StrCat(name, ": damping is ", damping, "; expected more than 0 and at most 1"));
  }
  constexpr double kLargest = 1.0 + 1e-9;  // ten times 0.1 may round above 1
  const at::Tensor diagonal = hessian.diagonal().clone();
  const double mean = diagonal.mean().item<double>();
  for (int escalations = 0; damping <= kLargest; ++escalations, damping *= 10) {
    hessian.diagonal().copy_(diagonal + damping * mean);
    at::Tensor factor = factorize(hessian);
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
    result.order = options.act_order
                       ? revived.diagonal().argsort(/*stable=*/true, /*dim=*/0,
                                                    /*descending=*/true)
                       : at::arange(revived.size(0), revived.options().dtype(at::kLong));
    if (options.act_order) {
      revived = revived.index_select(0, result.order).index_select(1, result.order);
    }
    NIBBLE_ASSIGN_OR_RETURN(DampedFactor damped,
                            FactorDamped(name, std::move(revived), options.damping, InverseFactor));
    result.hinv_upper = damped.factor.to(at::kFloat).contiguous();
    result.damping = damped.damping;
    result.damping_escalations = damped.escalations;
    return result;
  });
}

}  // namespace nibble
