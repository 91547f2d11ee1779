// Residual add, normalization and activation quantization: one kernel over each token's row. Free
// of LibTorch; launchers queue on `stream` and don't wait.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"

namespace nibble {

// RMSNorm without a bias, LayerNorm with one.
struct DeviceNorm {
  const __nv_bfloat16* gain = nullptr;  // [width]
  const __nv_bfloat16* bias = nullptr;  // [width], or null
  float eps = 1e-5f;
};

// All tensors row-major on the device, pointers aligned to 16 bytes (codes: 8, scales: 4), width a
// multiple of 8 up to 32768, else INVALID_ARGUMENT. A row depends on no other.
//
// hidden: bf16 [tokens, width], becomes bf16(hidden + delta) and is normalized from there; delta:
// bf16 [tokens, width], or null for 0.

// codes: E4M3 bytes [tokens, width], scales: f32 [tokens] (DESIGN 2). After an RMSNorm code =
// e4m3(x g 448 / amax|x g|), scale = amax|x g| / (448 rms), rms = sqrt(mean x^2 + eps); after a
// LayerNorm y, code = e4m3(y 448 / amax|y|), scale = amax|y| / 448. A row of zeros gets scale 0,
// one with a NaN or an infinity scale NaN.
absl::Status AddNormQuantize(const DeviceNorm& norm, __nv_bfloat16* hidden,
                             const __nv_bfloat16* delta, int64_t tokens, int64_t width,
                             uint8_t* codes, float* scales, cudaStream_t stream);

// out: bf16 [tokens, width], the normalized row rounded once, for what reads it unquantized. May be
// `hidden`: then the row is replaced by its norm (a norm after the residual, OPT-350m).
absl::Status AddNorm(const DeviceNorm& norm, __nv_bfloat16* hidden, const __nv_bfloat16* delta,
                     int64_t tokens, int64_t width, __nv_bfloat16* out, cudaStream_t stream);

}  // namespace nibble
