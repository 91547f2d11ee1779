// Causal grouped-query attention over the paged cache: chunked prefill by FlashInfer's kernels
// (Apache-2.0), decode by our own. Free of LibTorch; launchers queue on `stream` and don't wait.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "quant/kernels/cuda/paged_kv.h"
#include "quant/kernels/plan/attention_plan.h"

namespace nibble {

// One layer's call. The step's keys and values are already in `kv` (RotateAndAppend).
struct AttentionCall {
  AttentionPlan plan;
  const int32_t* image = nullptr;  // the plan's image on the device, aligned to 16 bytes
  PagedKv kv;
  const __nv_bfloat16* q = nullptr;  // [plan.tokens, heads, StoredHeadDim], aligned to 16 bytes
  void* workspace = nullptr;         // AttentionWorkspaceBytes, aligned to 16 bytes
};

// Partial results: per token and chunk the heads' values and their log-sums, f32.
int64_t AttentionWorkspaceBytes(const AttentionLimits& limits, int head_dim);

// Softmax over q k / sqrt(head_dim), accumulated and merged in f32. Width = heads * head_dim
// (padding left out), a multiple of 8, up to 16384. Two kernels; no allocation, so that they can be
// captured, with plan.Padded(), into a graph that any plan within the limits replays. A padding
// token's row is left as it is. In the decode regime a token depends on no other sequence; in the
// prefill regime the chunks, and so the rounding, depend on the batch. INVALID_ARGUMENT for shapes
// that don't fit each other and misaligned or missing pointers.
//
// out: bf16 [tokens, width], aligned to 16 bytes.
absl::Status Attend(const AttentionCall& call, __nv_bfloat16* out, cudaStream_t stream);
// codes: E4M3 bytes [tokens, width], scales: f32 [tokens], of the f32 result, as
// QuantizeActivationsE4M3 would make them; codes aligned to 4 bytes.
absl::Status AttendQuantize(const AttentionCall& call, uint8_t* codes, float* scales,
                            cudaStream_t stream);

}  // namespace nibble
