// What stands between two linears: the MLP's activation and per-token E4M3 rounding, one kernel
// over each token's row. Free of LibTorch; launchers queue on `stream` and don't wait.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"

namespace nibble {

// All tensors row-major on the device, pointers aligned to 16 bytes (codes: 8, scales: 4), width a
// multiple of 8 up to 32768, else INVALID_ARGUMENT. A row depends on no other.
//
// codes: E4M3 bytes [tokens, width]; scales: f32 [tokens]. Per token (DESIGN 2): scale = amax /
// 448, code = e4m3(y * (448 / amax)), y in f32. A row of zeros gets scale 0, one with a NaN or an
// infinity scale NaN.

// y = x; bit for bit as RoundActivationRow. x: bf16 [tokens, width].
absl::Status QuantizeActivationsE4M3(const __nv_bfloat16* x, int64_t tokens, int64_t width,
                                     uint8_t* codes, float* scales, cudaStream_t stream);
// y = max(x, 0). x: bf16 [tokens, width].
absl::Status ReluQuantize(const __nv_bfloat16* x, int64_t tokens, int64_t width, uint8_t* codes,
                          float* scales, cudaStream_t stream);
// y = silu(gate) * up. gate_up: bf16 [tokens, 2 * width], a row's gate before its up.
absl::Status SiluMulQuantize(const __nv_bfloat16* gate_up, int64_t tokens, int64_t width,
                             uint8_t* codes, float* scales, cudaStream_t stream);

// The same y as bf16 [tokens, width], for what reads it unquantized. `out` may be x (Relu).
absl::Status Relu(const __nv_bfloat16* x, int64_t tokens, int64_t width, __nv_bfloat16* out,
                  cudaStream_t stream);
absl::Status SiluMul(const __nv_bfloat16* gate_up, int64_t tokens, int64_t width,
                     __nv_bfloat16* out, cudaStream_t stream);

}  // namespace nibble
