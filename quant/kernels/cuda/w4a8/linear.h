// The W4A8 linear of Hopper (sm_90a): y = x W^T + (x B^T) A^T + bias with 4-bit floating-point
// weights, E4M3 activations and f32 sums. Free of LibTorch. After ZeroQuant-FP, arXiv 2307.09782.
//
//   weights              scales      how
//   E2M1, E3M0           M1, M2      the group's exponent folded into E4M3 bytes ("folded")
//   E2M1, E3M0           none        partial sums scaled group by group: slower
//   E4M3                 any         the same
//
// Weights are arranged once, at load (layout.h has the layout). Launchers queue on `stream`, don't
// allocate and don't wait, and may be captured into CUDA graphs.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "quant/kernels/cuda/dequantize.h"
#include "quant/kernels/cuda/w4a8/layout.h"

namespace nibble::w4a8 {

// One of the matrices that a call multiplies by the same activations (q, k, v; gate, up). All
// arrays lie on the device and are read by Prepare only.
struct Segment {
  DeviceQuantizedMatrix weight;           // all segments: the same cols and spec
  const __nv_bfloat16* bias = nullptr;    // [rows], or null
  const __nv_bfloat16* lorc_a = nullptr;  // [rows, rank], or null
  const __nv_bfloat16* lorc_b = nullptr;  // [rank, cols], or null
  int rank = 0;                           // 0..kMaxRank
};

// Weights as the kernels read them. The arrays lie in the memory given to Prepare, whose owner
// keeps it as long as this is used.
struct PreparedLinear {
  Format format = Format::kE2M1;
  Kind kind = Kind::kFolded;
  int group_size = 128;
  int64_t rows = 0;  // of all segments: the width of the output
  int64_t cols = 0;
  int64_t row_tiles = 0;
  SegmentTable segments = {};
  int ranks = 0;                        // LoRC ranks of all segments, each rounded up to 16
  int max_rank = 0;                     // of one segment
  const uint8_t* slices = nullptr;      // [slice][row tile][SliceBytes]
  const float* row_scale = nullptr;     // [row tiles * 64]: folded S_row * 2^-bias, else 1
  const __nv_bfloat16* bias = nullptr;  // [row tiles * 64], or null
  const uint4* lorc_a = nullptr;        // see RowTile
  const uint8_t* lorc_b = nullptr;      // see LorcTiles
  const float* lorc_scale = nullptr;    // [ranks]: 2^e

  int64_t slice_count() const { return CeilDiv(cols, kSliceCols); }
};

// Bytes of device memory that Prepare fills. INVALID_ARGUMENT for segments that don't go together
// or formats without a kernel: integers, E5M2, other shapes than positive ones, LoRC factors half
// given or of too many ranks, more than kMaxSegments segments.
absl::StatusOr<size_t> PreparedBytes(absl::Span<const Segment> segments);

// Arranges the weights in `memory` (PreparedBytes, aligned to 256 bytes) by kernels on `stream`.
absl::StatusOr<PreparedLinear> Prepare(absl::Span<const Segment> segments, void* memory,
                                       cudaStream_t stream);

// The tensor cores add in an accumulator narrower than f32. kPromoted moves every sum to f32 after
// at most 128 columns of K, for any number of tokens. kFast leaves the whole of K to that
// accumulator beyond 128 tokens, and is kPromoted up to there and for scaled kinds (the error of
// both: quant/kernels/README.md).
enum class Accumulation : uint8_t { kPromoted, kFast };

// x E4M3 codes with one scale a token, y = bf16, or f32 for tests and debugging.
struct LinearCall {
  const uint8_t* x = nullptr;  // [tokens, pitch], aligned to 16 bytes; columns from cols on unread
  int64_t x_pitch = 0;         // bytes of a row: a multiple of 16, at least cols
  const float* x_scale = nullptr;  // [tokens]
  int64_t tokens = 0;              // 1..16384
  __nv_bfloat16* y = nullptr;      // [tokens, rows]; this or y_f32
  float* y_f32 = nullptr;
  void* workspace = nullptr;  // WorkspaceBytes(weights, tokens), aligned to 256 bytes
  Accumulation accumulation = Accumulation::kPromoted;
  // The grid may start while the one before it in the stream still runs: it reads weights at once
  // and waits only before it touches anything else.
  bool overlap_previous = false;
};

// Bytes of a workspace for launches of up to `tokens` tokens. Zero it once (cudaMemset) before its
// first use; launches in one stream may share it, whatever their weights. From 1,024 tokens on it
// holds the expanded weights, one byte each; otherwise it is 0 without LoRC.
size_t WorkspaceBytes(const PreparedLinear& weights, int64_t tokens);

// INVALID_ARGUMENT "<field>: found <found>, expected <expected>".
absl::Status Launch(const PreparedLinear& weights, const LinearCall& call, cudaStream_t stream);

}  // namespace nibble::w4a8
