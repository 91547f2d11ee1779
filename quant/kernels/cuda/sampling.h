// Choosing the next token of each row on a GPU. Free of LibTorch; launchers queue on `stream` and
// don't wait.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "quant/kernels/plan/sampling.h"

namespace nibble {

// Logits [rows, stride] on the device, of which the first `vocab` of each row count; aligned to 16
// bytes, stride a multiple of 8. Minus infinity bans a token.
template <class T>
struct LogitRows {
  const T* logits = nullptr;
  int64_t rows = 0;
  int64_t vocab = 0;  // up to 2^18
  int64_t stride = 0;
};

// tokens[r]: the largest logit's id (greedy; ties: the lowest), or one drawn as
// quant/kernels/plan/sampling.h defines from rows[r] and positions[r], the position of the token to
// be drawn; -1 for a row with a NaN or whose largest logit isn't finite. All int32 or SamplingRow
// arrays [rows] on the device. A row depends on no other. INVALID_ARGUMENT for sizes outside of the
// above and misaligned or missing pointers.
absl::Status SampleTokens(const LogitRows<__nv_bfloat16>& logits, const SamplingRow* rows,
                          const int32_t* positions, int32_t* tokens, cudaStream_t stream);
absl::Status SampleTokens(const LogitRows<float>& logits, const SamplingRow* rows,
                          const int32_t* positions, int32_t* tokens, cudaStream_t stream);

}  // namespace nibble
