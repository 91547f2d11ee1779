// What the decoder forward calls, on LibTorch tensors of the CPU (f32) or a CUDA device (f32 or
// bf16). Activations are [tokens, width], row-major, of the weights' type; norms are computed and
// activations rounded in f32.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "quant/formats/formats.h"

namespace nibble {

// One linear's parameters as the forward multiplies them.
struct LinearWeights {
  at::Tensor weight;  // [N, K] true values
  at::Tensor bias;    // [N], undefined when absent
  at::Tensor lorc_a;  // [N, r], undefined when absent
  at::Tensor lorc_b;  // [r, K]
};

struct NormWeights {
  at::Tensor gain;  // f32 [H]
  at::Tensor bias;  // f32 [H], LayerNorm only
  double eps = 1e-5;
};

// RMSNorm when `bias` is undefined, else LayerNorm.
at::Tensor Normalize(const NormWeights& norm, const at::Tensor& x);

// Per-token rounding to the activation format; x itself when `spec` is absent.
at::Tensor RoundActivations(const std::optional<ActivationSpec>& spec, const at::Tensor& x);

// Normalize, then RoundActivations, with DESIGN's definition: after an RMSNorm the 1/rms cancels,
// q = e4m3(x g 448 / amax|x g|), S = amax|x g| / (448 rms).
at::Tensor NormalizeAndRound(const NormWeights& norm, const std::optional<ActivationSpec>& spec,
                             const at::Tensor& x);

// y = x W^T + (x B^T) A^T + bias; x already rounded.
at::Tensor Linear(const LinearWeights& weights, const at::Tensor& x);

// Rotary embedding in place (rotate-half convention). x: [tokens, heads, head_dim];
// cos, sin: f32 [tokens, head_dim / 2].
void ApplyRotary(at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

// The rows of one sequence inside a batch: tokens first_row .. first_row + length - 1 stand at
// positions position .. position + length - 1 of their sequence.
struct Segment {
  int64_t first_row = 0;
  int64_t length = 0;
  int64_t position = 0;
  std::vector<int32_t>
      blocks;  // KV blocks that hold positions 0 .. position + length - 1, in order
};

// Keys and values of one layer in fixed-size blocks: [blocks, block_size, kv_heads, head_dim].
struct KvBlocks {
  at::Tensor k;
  at::Tensor v;
};

// Causal grouped-query attention. q: [tokens, heads, head_dim]; k, v: [tokens, kv_heads, head_dim].
// With `cache`, k and v are first written to the segment's blocks and the whole sequence is
// attended; without, every segment starts at position 0 and attends to itself.
at::Tensor Attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     absl::Span<const Segment> segments, KvBlocks* cache);

}  // namespace nibble
