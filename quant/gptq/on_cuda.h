// The solve of a matrix that lies on a GPU. Kernels are queued on LibTorch's current stream, whose
// errors are thrown. A build without CUDA has no such matrices, and these refuse there. Private to
// gptq/.
#pragma once

#include <ATen/ATen.h>

#include "absl/status/statusor.h"
#include "quant/gptq/gptq.h"
#include "quant/gptq/solver.h"

namespace nibble {

// One linear's solve, on either device.
struct Solve {
  const WeightSpec& spec;
  const GptqFactor& factor;
  const at::Tensor& original;  // f32 [N, K], dead columns zero
  int64_t block_columns;
  ScaleSource source;
  const at::Tensor& column_weights;  // f32 [K]: scales are searched for; undefined: they are not
};

// Block by block, the errors of a block spread over all columns behind it by one matrix product.
// weights: `original` in the order of the solve, f32 [N, K]; left as GPTQ's updates make them.
// INVALID_ARGUMENT for blocks of more columns than the kernel takes, 128.
absl::StatusOr<QuantizedLinear> SolveOnCuda(const Solve& solve, at::Tensor& weights);

// QuantizeRtn. w: f32 [N, K], contiguous.
absl::StatusOr<QuantizedLinear> RoundOnCuda(const WeightSpec& spec, const at::Tensor& w,
                                            const at::Tensor& column_weights);

// weights[:, block.end:] -= errors hinv[block, block.end:]. errors: [N, block.size()].
void SpreadErrors(const at::Tensor& hinv, const ColumnBlock& block, const at::Tensor& errors,
                  at::Tensor& weights);

}  // namespace nibble
