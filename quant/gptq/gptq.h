// Quantizing one weight matrix: round-to-nearest, GPTQ (Frantar et al., arXiv 2210.17323) and the
// low-rank correction LoRC (ZeroQuant-V2, arXiv 2303.08302). Free functions on tensors of one
// device; what a model is they do not know.
#pragma once

#include <ATen/ATen.h>

#include <string>

#include "absl/status/statusor.h"
#include "quant/formats/formats.h"
#include "quant/gptq/options.h"

namespace nibble {

// Sum of x x^T over all tokens seen, f32 [K, K] on `device`. Only the upper triangle is summed:
// matrix() mirrors it, a copy at each call.
class Hessian {
 public:
  explicit Hessian(int64_t cols, at::Device device = at::kCPU);
  // x: f32, or bf16 on CUDA [tokens, K]; products of bf16 are exact and summed in f32.
  void Accumulate(const at::Tensor& x);
  at::Tensor matrix() const;
  int64_t tokens() const { return tokens_; }

 private:
  at::Tensor upper_;  // meaningful on and above the diagonal
  int64_t tokens_ = 0;
};

// What both methods return.
struct QuantizedLinear {
  QuantizedMatrix matrix;
  int64_t clamped_groups = 0;
  double damping = 0;           // the damping that the Cholesky succeeded with; 0 for RTN
  int damping_escalations = 0;  // tenfold raises that were needed
};

// The part of a solve that depends on H alone: shared by linears with the same input (q/k/v,
// gate/up), and what a device solver is given so that its codes can be compared.
struct GptqFactor {
  at::Tensor order;       // i64 [K]: column permutation (identity in natural order)
  at::Tensor hinv_upper;  // f32 [K, K]: upper Cholesky factor of the damped, permuted H^-1
  at::Tensor dead;        // bool [K]: original columns with diag(H) = 0, their weights are 0
  double damping = 0;
  int damping_escalations = 0;
};

// Damping is raised tenfold after each Cholesky failure; past 1.0 it is FAILED_PRECONDITION naming
// `name`.
absl::StatusOr<GptqFactor> FactorHessian(const std::string& name, const at::Tensor& hessian,
                                         const GptqOptions& options);

// w: f32 [N, K]. NaN or infinity in w is INVALID_ARGUMENT naming `name`; updates that overflow are
// FAILED_PRECONDITION. Rows are solved on as many threads as LibTorch uses, which changes no
// result; on CUDA a warp solves a row by the same arithmetic. In natural order a group's scale sees
// every update of the columns before it, wherever the group lies in the blocks.
// column_weights: f32 [K], at least 0: each group's scale is searched for (scale_search.h), by
// squared errors so weighted; undefined: it comes from the group's largest weight. Symmetric codes
// only, and not in natural order.
absl::StatusOr<QuantizedLinear> QuantizeRtn(const std::string& name, const at::Tensor& w,
                                            const WeightSpec& spec,
                                            const at::Tensor& column_weights = {});
absl::StatusOr<QuantizedLinear> QuantizeGptq(const std::string& name, const at::Tensor& w,
                                             const GptqFactor& factor, const WeightSpec& spec,
                                             const GptqOptions& options,
                                             const at::Tensor& column_weights = {});

// y += (x B^T) A^T. Both bf16.
struct LorcFactors {
  at::Tensor a;  // [N, r]
  at::Tensor b;  // [r, K]
  // kInput: the damping of H, and the tenfold raises it needed, as in GptqFactor.
  double damping = 0;
  int damping_escalations = 0;
};
// Best rank-r factors of E = W - What. kWeight: plain SVD, sqrt(S) split between the factors.
// kInput: SVD in the metric of H (hessian: [K, K]; unused for kWeight). On the CPU to f64's
// accuracy; of large matrices on CUDA by iteration, capturing within 1e-3 of the most energy. rank
// must be in 1..min(N, K).
absl::StatusOr<LorcFactors> ComputeLorc(const std::string& name, const at::Tensor& error,
                                        int64_t rank, LorcMetric metric, const at::Tensor& hessian);

// True values [N, K]: f32, or bf16 on CUDA, rounded once.
at::Tensor Dequantize(const QuantizedMatrix& matrix, const at::TensorOptions& options = at::kFloat);

// trace(E H E^T) / trace(W H W^T): squared relative output error over the inputs H was summed of.
double RelativeOutputError(const at::Tensor& w, const at::Tensor& w_hat, const at::Tensor& hessian);
// ||E|| / ||W||.
double RelativeWeightError(const at::Tensor& w, const at::Tensor& w_hat);

}  // namespace nibble
