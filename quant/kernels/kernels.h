// What the decoder forward calls, on LibTorch tensors of the CPU (f32) or a CUDA device (f32 or
// bf16). Activations are [tokens, width], row-major, of the weights' type; norms are computed and
// activations rounded in f32.
#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "quant/formats/formats.h"

namespace nibble {

struct ArrangedLinear;

// One linear's parameters as the forward multiplies them: as true values, or arranged once for the
// CPU's own kernels.
struct LinearWeights {
  at::Tensor weight;                               // [N, K] true values
  at::Tensor bias;                                 // [N], undefined when absent
  at::Tensor lorc_a;                               // [N, r], undefined when absent
  at::Tensor lorc_b;                               // [r, K]
  std::shared_ptr<const ArrangedLinear> arranged;  // instead of weight, lorc_a and lorc_b
};

// Replaces the true values by their arranged form (cpu/arranged_matrix.h), which holds `matrix`
// (instead of weights.weight) without dequantizing it, or weights.weight in 16 bits if these are
// exact.
void Arrange(const QuantizedMatrix* matrix, LinearWeights& weights);
int64_t WeightBytes(const LinearWeights& weights);  // in memory

struct NormWeights {
  at::Tensor gain;  // f32 [H]
  at::Tensor bias;  // f32 [H], LayerNorm only
  double eps = 1e-5;
};

// RMSNorm when `bias` is undefined, else LayerNorm.
at::Tensor Normalize(const NormWeights& norm, const at::Tensor& x);

// x = values * scales. What the CPU has rounded keeps each token's scale apart, so that its values
// are numbers of the activation format and fit in bf16.
struct LinearInput {
  at::Tensor values;              // [tokens, K]
  at::Tensor scales;              // f32 [tokens, 1]; undefined: 1
  at::Tensor TrueValues() const;  // x
};

// Per-token rounding to the activation format; x itself when `spec` is absent.
LinearInput RoundActivations(const std::optional<ActivationSpec>& spec, const at::Tensor& x);

// Normalize, then RoundActivations, with DESIGN's definition: after an RMSNorm the 1/rms cancels,
// q = e4m3(x g 448 / amax|x g|), S = amax|x g| / (448 rms).
LinearInput NormalizeAndRound(const NormWeights& norm, const std::optional<ActivationSpec>& spec,
                              const at::Tensor& x);

// y = x W^T + (x B^T) A^T + bias of each of some linears with one input; x already rounded.
// Arranged weights: a token's y depends, bit for bit, on its x alone. All arranged or none.
std::vector<at::Tensor> Linears(absl::Span<const LinearWeights* const> linears,
                                const LinearInput& x);
at::Tensor Linear(const LinearWeights& weights, const at::Tensor& x);
// A hint: Linears of these comes soon. Idle threads of a CPU fetch their weights (parallel.h).
void ExpectLinears(absl::Span<const LinearWeights* const> linears);

// The rows of a weight, as an embedding: f32 [rows.numel(), K]. rows: i64, in range.
at::Tensor GatherRows(const LinearWeights& weights, const at::Tensor& rows);

// silu(gate) * up.
at::Tensor SiluMultiply(const at::Tensor& gate, const at::Tensor& up);

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

// Positions of a sequence that one KV block holds.
inline constexpr int64_t kKvBlockSize = 16;

// Keys and values of one layer in blocks, as the kernels read them:
//   k f32 [blocks, kv_heads, head_dim, kKvBlockSize]
//   v f32 [blocks, kv_heads, ceil(head_dim / 16), kKvBlockSize, 16]
struct KvBlocks {
  at::Tensor k;
  at::Tensor v;
};
KvBlocks MakeKvBlocks(int64_t blocks, int64_t kv_heads, int64_t head_dim);
int64_t KvBlockBytes(int64_t kv_heads, int64_t head_dim);  // of one block of one layer

// Causal grouped-query attention. q: [tokens, heads, head_dim]; k, v: [tokens, kv_heads, head_dim].
// With `cache`, k and v are first written to the segment's blocks and the whole sequence is
// attended; without, every segment starts at position 0 and attends to itself. A token's result
// depends, bit for bit, on its q and the keys and values up to its position alone.
at::Tensor Attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     absl::Span<const Segment> segments, KvBlocks* cache);

}  // namespace nibble
