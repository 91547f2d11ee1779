// Rounding activations on a GPU. Free of LibTorch; launchers queue on `stream` and don't wait.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"

namespace nibble {

// Per-token E4M3 (DESIGN 2): scale = amax / 448, code = e4m3(x * (448 / amax)), bit for bit as
// RoundActivationRow. A row of zeros gets scale 0; a row with a NaN or an infinity scale NaN.
// x: bf16 [tokens, width]; codes: E4M3 bytes [tokens, width]; scales: f32 [tokens]; row-major on
// the device. INVALID_ARGUMENT unless width is a multiple of 8 and the pointers are aligned to 16
// (codes: 8) bytes.
absl::Status QuantizeActivationsE4M3(const __nv_bfloat16* x, int64_t tokens, int64_t width,
                                     uint8_t* codes, float* scales, cudaStream_t stream);

}  // namespace nibble
