// The second kernel of attention: each token's partial results become one row. Private to
// attention.cu.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"

namespace nibble {

// On the device. Token t's partials are begin[t] .. begin[t + 1] - 1; padding tokens have none.
struct PartialResults {
  float* values;         // [partials, heads, stored_dim], each softmax-normalized in itself
  float* log_sums;       // [partials, heads], log2 of the sum of 2^score
  const int32_t* begin;  // [tokens + 1]
  int heads;
  int head_dim;
  int stored_dim;
};

absl::Status MergePartials(const PartialResults& partials, int64_t tokens, __nv_bfloat16* out,
                           cudaStream_t stream);
absl::Status MergePartialsQuantize(const PartialResults& partials, int64_t tokens, uint8_t* codes,
                                   float* scales, cudaStream_t stream);

}  // namespace nibble
