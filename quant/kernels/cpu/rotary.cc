#include <ATen/ATen.h>

#include "quant/kernels/cpu/parallel.h"
#include "quant/kernels/cpu/tensor_kernels.h"
#include "quant/kernels/kernels.h"

namespace nibble {

void ApplyRotary(at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  if (!x.is_cpu() || !x.is_contiguous()) return tensor::ApplyRotary(x, cos, sin);
  const int64_t heads = x.size(1);
  const int64_t half = x.size(2) / 2;
  const float* all_cos = cos.data_ptr<float>();
  const float* all_sin = sin.data_ptr<float>();
  constexpr int64_t kTokenBlock = 4;  // tokens worth a thread
  ParallelBlocks(x.size(0), kTokenBlock, [&](int64_t token) {
    const float* c = all_cos + token * half;
    const float* s = all_sin + token * half;
    for (int64_t head = 0; head < heads; ++head) {
      float* low = x.data_ptr<float>() + (token * heads + head) * 2 * half;
      float* high = low + half;
      for (int64_t i = 0; i < half; ++i) {
        const float turned = low[i] * c[i] - high[i] * s[i];
        high[i] = high[i] * c[i] + low[i] * s[i];
        low[i] = turned;
      }
    }
  });
}

}  // namespace nibble
