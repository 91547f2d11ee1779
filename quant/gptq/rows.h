// What both quantization methods begin and end with. Private to gptq/.
#pragma once

#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "quant/gptq/gptq.h"

namespace nibble {

// INVALID_ARGUMENT naming `name` unless w is a finite f32 matrix and `spec` is valid.
absl::Status CheckWeights(const std::string& name, const at::Tensor& w, const WeightSpec& spec);

// INVALID_ARGUMENT naming `name` unless scales of w can be searched for by `column_weights`, or
// those are undefined.
absl::Status CheckSearch(const std::string& name, const at::Tensor& w, const WeightSpec& spec,
                         const at::Tensor& column_weights);

// ComputeRowScales, or SearchScales where column weights are defined, of every row of w: f32, on
// the CPU, contiguous.
std::vector<RowScales> ScalesOfRows(const WeightSpec& spec, const at::Tensor& w,
                                    const at::Tensor& column_weights);

// One row of a contiguous f32 matrix.
absl::Span<const float> RowSpan(const at::Tensor& matrix, int64_t row);

// codes: [rows, cols], one per byte; scales: [rows].
QuantizedLinear PackRows(const WeightSpec& spec, int64_t rows, int64_t cols,
                         absl::Span<const uint8_t> codes, absl::Span<const RowScales> scales);

}  // namespace nibble
