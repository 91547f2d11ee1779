#include "quant/gptq/on_cuda.h"

namespace nibble {

absl::StatusOr<QuantizedLinear> SolveOnCuda(const Solve&, at::Tensor&) {
  return absl::UnimplementedError("this build has no CUDA");
}

absl::StatusOr<QuantizedLinear> RoundOnCuda(const WeightSpec&, const at::Tensor&,
                                            const at::Tensor&) {
  return absl::UnimplementedError("this build has no CUDA");
}

}  // namespace nibble
