// The rows of a solve as tensors of any device, and packing them. Private to gptq/.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "quant/gptq/gptq.h"

namespace nibble {

// The RowScales of every row. Tensors that the spec does not use are undefined.
struct MatrixScales {
  at::Tensor scale;      // f32 [N, groups]
  at::Tensor zero;       // u8 [N, groups], asymmetric
  at::Tensor row_scale;  // f32 [N], M2
  at::Tensor exponent;   // i8 [N, groups], M1: log2 S; M2: k
  at::Tensor clamped;    // i32 [N]
};

MatrixScales EmptyScales(const WeightSpec& spec, int64_t rows, int64_t cols, at::Device device);

// Each row's; tensors of the CPU, symmetric.
std::vector<RowScales> UnpackScales(const MatrixScales& scales);

// What StoreRow makes of every row. codes: u8 [N, K], one a byte.
QuantizedLinear PackMatrix(const WeightSpec& spec, const at::Tensor& codes,
                           const MatrixScales& scales);

}  // namespace nibble
