#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "quant/kernels/cpu/isa.h"
#include "quant/kernels/cpu/tensor_kernels.h"
#include "quant/kernels/kernels.h"

namespace nibble {

at::Tensor SiluMultiply(const at::Tensor& gate, const at::Tensor& up) {
  if (!gate.is_cpu()) return tensor::SiluMultiply(gate, up);
  at::Tensor out = gate.clone(at::MemoryFormat::Contiguous);
  const at::Tensor factors = up.contiguous();
  const int64_t width = out.size(-1);
  const TileKernels& kernels = KernelsOf(ActiveIsa());
  at::parallel_for(0, out.numel() / width, /*grain_size=*/8, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      kernels.silu_multiply(out.data_ptr<float>() + row * width,
                            factors.data_ptr<float>() + row * width, width);
    }
  });
  return out;
}

}  // namespace nibble
