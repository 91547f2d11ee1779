#include <ATen/ATen.h>

#include "quant/kernels/kernels.h"

namespace nibble {

at::Tensor Linear(const LinearWeights& weights, const at::Tensor& x) {
  at::Tensor y = at::linear(x, weights.weight, weights.bias);
  if (weights.lorc_a.defined()) y += at::linear(at::linear(x, weights.lorc_b), weights.lorc_a);
  return y;
}

}  // namespace nibble
