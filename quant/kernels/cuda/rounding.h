// Per-token activation rounding to true values on a GPU, every format: what the labelled true-value
// path multiplies. Free of LibTorch; launchers queue on `stream` and don't wait.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "quant/formats/formats.h"

namespace nibble {

// out[token]: RoundActivationRow of x[token], bit for bit in f32; of bf16 rows the same done in f32
// and rounded to nearest even once. x, out: [tokens, width] row-major on the device; out may be x.
// INVALID_ARGUMENT for a spec that is not valid, a null pointer or a shape that is not positive (0
// tokens: nothing is done).
absl::Status RoundActivationRows(const ActivationSpec& spec, const float* x, int64_t tokens,
                                 int64_t width, float* out, cudaStream_t stream);
absl::Status RoundActivationRows(const ActivationSpec& spec, const __nv_bfloat16* x, int64_t tokens,
                                 int64_t width, __nv_bfloat16* out, cudaStream_t stream);

}  // namespace nibble
