#include <ATen/ATen.h>

#include "quant/kernels/cpu/isa.h"
#include "quant/kernels/cpu/parallel.h"
#include "quant/kernels/cpu/tensor_kernels.h"
#include "quant/kernels/kernels.h"

namespace nibble {
namespace {

constexpr int64_t kRowBlock = 2;  // rows worth a thread

}  // namespace

at::Tensor SiluMultiply(const at::Tensor& gate, const at::Tensor& up) {
  if (!gate.is_cpu()) return tensor::SiluMultiply(gate, up);
  at::Tensor out = gate.clone(at::MemoryFormat::Contiguous);
  const at::Tensor factors = up.contiguous();
  const int64_t width = out.size(-1);
  const TileKernels& kernels = KernelsOf(ActiveIsa());
  ParallelBlocks(out.numel() / width, kRowBlock, [&](int64_t row) {
    kernels.silu_multiply(out.data_ptr<float>() + row * width,
                          factors.data_ptr<float>() + row * width, width);
  });
  return out;
}

}  // namespace nibble
