// A bf16 tensor's elements, as the CUDA kernels take them.
#pragma once

#include <ATen/ATen.h>
#include <cuda_bf16.h>

namespace nibble {

inline const __nv_bfloat16* Bf16(const at::Tensor& tensor) {
  return reinterpret_cast<const __nv_bfloat16*>(tensor.const_data_ptr<at::BFloat16>());
}

inline __nv_bfloat16* MutableBf16(const at::Tensor& tensor) {
  return reinterpret_cast<__nv_bfloat16*>(tensor.mutable_data_ptr<at::BFloat16>());
}

}  // namespace nibble
