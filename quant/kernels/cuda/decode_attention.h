// The first kernel of decode attention: partial results of few queries a sequence. Private to
// attention.cu.
#pragma once

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "quant/kernels/cuda/attention.h"
#include "quant/kernels/cuda/attention_merge.h"

namespace nibble {

// Of a plan in the decode regime.
absl::Status AttendDecode(const AttentionCall& call, const PartialResults& partials,
                          cudaStream_t stream);

}  // namespace nibble
