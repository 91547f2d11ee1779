// True values of a quantized matrix on a GPU: the basis of the labelled true-value path, which
// multiplies every format that no fast kernel takes. Free of LibTorch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "quant/formats/formats.h"

namespace nibble {

// A QuantizedMatrix whose arrays lie on the device, in the same layouts; those that its `spec` does
// not use are null. The values obey QuantizedMatrix::Validate, which its owner has run.
struct DeviceQuantizedMatrix {
  WeightSpec spec;
  int64_t rows = 0;
  int64_t cols = 0;
  const uint8_t* codes = nullptr;    // [rows, ceil(cols * bits / 8)], low nibble first
  const float* scale = nullptr;      // NONE: [rows, groups]
  const int8_t* exponent = nullptr;  // M1:   [rows, groups]
  const float* row_scale = nullptr;  // M2:   [rows]
  const uint8_t* k = nullptr;        // M2:   [rows, ceil(groups / 2)], low nibble first
  const uint8_t* zero = nullptr;     // asymmetric: [rows, groups]
};

// values[r, c]: what QuantizedMatrix::DequantizeRow gives, bit for bit in f32, rounded to nearest
// even in bf16. values: [rows, cols] row-major on the device, aligned to 16 bytes; codes to 8. Any
// rows and cols; fastest where cols is a multiple of 16. INVALID_ARGUMENT for a spec that is not
// valid, a shape that is not positive, or a pointer that is missing or misaligned.
absl::Status Dequantize(const DeviceQuantizedMatrix& matrix, float* values, cudaStream_t stream);
absl::Status Dequantize(const DeviceQuantizedMatrix& matrix, __nv_bfloat16* values,
                        cudaStream_t stream);

}  // namespace nibble
