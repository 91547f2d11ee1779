// The damped Hessian and its Cholesky factor, shared by GPTQ and LoRC. Private to gptq/.
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <string>

#include "absl/status/statusor.h"

namespace nibble {

// f64 copy of H [K, K] with 1 on the diagonal where H has 0 (an input that is always zero).
// INVALID_ARGUMENT naming `name` unless H is square and finite.
absl::StatusOr<at::Tensor> ReviveDeadInputs(const std::string& name, const at::Tensor& hessian);

struct DampedFactor {
  at::Tensor factor;
  double damping = 0;
  int escalations = 0;
};

// factorize(H + damping * mean(diag H) * I), which returns an undefined tensor when the matrix is
// not positive definite; damping is then raised tenfold, past 1.0 it is FAILED_PRECONDITION naming
// `name`. `hessian` is damped in place.
absl::StatusOr<DampedFactor> FactorDamped(
    const std::string& name, at::Tensor hessian, double damping,
    const std::function<at::Tensor(const at::Tensor&)>& factorize);

// Lower Cholesky factor of a matrix, or an undefined tensor when there is none.
at::Tensor Cholesky(const at::Tensor& matrix);

}  // namespace nibble
