#include <ATen/ATen.h>

#include <algorithm>

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
  const at::Tensor gates = gate.contiguous();
  const at::Tensor factors = up.contiguous();
  at::Tensor out = at::empty(gates.sizes(), at::kFloat);
  const int64_t width = out.size(-1);
  const TileKernels& kernels = KernelsOf(ActiveIsa());
  const float* const from = gates.const_data_ptr<float>();
  const float* const factor = factors.const_data_ptr<float>();
  float* const to = out.mutable_data_ptr<float>();
  ParallelBlocks(out.numel() / width, kRowBlock, [&](int64_t row) {
    std::copy_n(from + row * width, width, to + row * width);
    kernels.silu_multiply(to + row * width, factor + row * width, width);
  });
  return out;
}

}  // namespace nibble
