#include <ATen/ATen.h>

#include "quant/kernels/kernels.h"

namespace nibble {

void ApplyRotary(at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const int64_t half = x.size(-1) / 2;
  at::Tensor low = x.narrow(-1, 0, half);
  at::Tensor high = x.narrow(-1, half, half);
  const at::Tensor c = cos.unsqueeze(1);  // [tokens, 1, half]
  const at::Tensor s = sin.unsqueeze(1);
  const at::Tensor rotated_low = low * c - high * s;
  const at::Tensor rotated_high = high * c + low * s;
  low.copy_(rotated_low);
  high.copy_(rotated_high);
}

}  // namespace nibble
