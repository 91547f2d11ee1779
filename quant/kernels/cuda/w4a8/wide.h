// The W4A8 linear for more than kDecodeTokens tokens. Private to the linear, its tests and benches;
// linear.h is the interface.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "absl/status/status.h"
#include "quant/kernels/cuda/w4a8/linear.h"
#include "quant/kernels/cuda/w4a8/wide_plan.h"

namespace nibble::w4a8 {

// Of LaunchWide by its own plan.
size_t WideWorkspaceBytes(const PreparedLinear& weights, int64_t tokens);

// `call` as Launch has checked it, kFolded, with more than kDecodeTokens tokens. LoRC is two
// products: t = x B^T by a kernel of its own, then A t^T within the epilogue.
absl::Status LaunchWide(const PreparedLinear& weights, const LinearCall& call, cudaStream_t stream);

// By a plan of the call's shape; the workspace as WideWorkspaceMemory.
absl::Status LaunchWide(const WidePlan& plan, const PreparedLinear& weights, const LinearCall& call,
                        cudaStream_t stream);

// t[token][rank] = bf16(sum over k of x[token][k] b[rank][k]), x in units of its codes.
// t: [call.tokens, weights.ranks].
absl::Status LaunchLorcProduct(const PreparedLinear& weights, const LinearCall& call,
                               __nv_bfloat16* t, cudaStream_t stream);

}  // namespace nibble::w4a8
