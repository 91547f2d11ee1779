// The decode regime of the W4A8 linear, M = 1..64: every weight read once. Private to the linear,
// its tests and benches; linear.h is the interface.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "quant/kernels/cuda/w4a8/linear.h"
#include "quant/kernels/cuda/w4a8/plan.h"

namespace nibble::w4a8 {

LinearShape ShapeOf(const PreparedLinear& weights, int64_t tokens);

// Bytes of the workspace for LoRC's t; 0 without LoRC.
size_t DecodeWorkspaceBytes(const PreparedLinear& weights, int64_t tokens);

// `call` as Launch has checked it, with at most kDecodeTokens tokens, by a plan of its shape.
// INVALID_ARGUMENT if the device has not the shared memory that the plan asks for.
absl::Status LaunchDecode(const DecodePlan& plan, const PreparedLinear& weights,
                          const LinearCall& call, cudaStream_t stream);

// The most blocks of the plan that the device runs at once.
absl::StatusOr<int> ResidentBlocks(const DecodePlan& plan, const PreparedLinear& weights);

}  // namespace nibble::w4a8
