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

// One row of a contiguous f32 matrix.
absl::Span<const float> RowSpan(const at::Tensor& matrix, int64_t row);

// codes: [rows, cols], one per byte; scales: [rows].
QuantizedLinear PackRows(const WeightSpec& spec, int64_t rows, int64_t cols,
                         absl::Span<const uint8_t> codes, absl::Span<const RowScales> scales);

}  // namespace nibble
