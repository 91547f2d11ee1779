// What LibTorch has no function for on CUDA tensors: true values of rounded activations and of
// quantized weights. Kernels are queued on LibTorch's current stream. Errors are thrown, as
// LibTorch's are. A build without CUDA has no such tensors, and these refuse there.
#pragma once

#include <ATen/ATen.h>

#include "quant/formats/formats.h"

namespace nibble {

// RoundActivationRow of every row of x: f32 or bf16 [..., width] on CUDA. In f32 bit for bit the
// CPU's; in bf16 that of the widened row, rounded once.
at::Tensor RoundRowsOnCuda(const ActivationSpec& spec, const at::Tensor& x);

// Values [rows, cols] on `options`' CUDA device, f32 (bit for bit the CPU's) or bf16.
at::Tensor DequantizeOnCuda(const QuantizedMatrix& matrix, const at::TensorOptions& options);

}  // namespace nibble
