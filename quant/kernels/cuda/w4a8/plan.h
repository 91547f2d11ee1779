// How a W4A8 product is cut up: a pure function of its shape, free of CUDA.
#pragma once

#include <cstdint>
#include <string>

#include "quant/kernels/cuda/w4a8/layout.h"

namespace nibble::w4a8 {

// What the kernels know of a GPU.
struct Device {
  int multiprocessors = 132;
  int shared_bytes = 228 * 1024;        // of one multiprocessor
  int block_shared_bytes = 227 * 1024;  // that one block may have
};

struct LinearShape {
  int64_t tokens = 0;
  int64_t row_tiles = 0;
  int64_t cols = 0;
  Kind kind = Kind::kFolded;
  int group_size = 128;
  int ranks = 0;     // LoRC ranks of all segments, each rounded up to 16
  int max_rank = 0;  // of one segment
};

enum class Regime : uint8_t { kDecode, kMedium, kPrefill };

// The largest number of tokens of the decode regime.
inline constexpr int kDecodeTokens = 64;
// Parts of K of a LoRC tile, one block each: a multiple of every number of splits.
inline constexpr int kLorcPieces = 8;

// Decode: reads the weights once, at the speed of memory.
// Row blocks of `warpgroups` row tiles times `splits` equal parts of K, one thread block each; the
// parts of a row block are a cluster, which adds them in the order of K. `splits` and the order of
// sums depend on rows and columns only, never on tokens.
struct DecodePlan {
  int token_tile = 0;  // 8, 16, 32 or 64 columns of the product
  int warpgroups = 0;  // row tiles of a block
  int splits = 0;      // 1, 2, 4 or 8
  int stages = 0;      // slices in flight
  int lorc_tiles = 0;  // 0: no LoRC
  int lorc_pieces = 0;
  int row_blocks = 0;
  int shared_bytes = 0;

  int blocks() const { return row_blocks * splits + lorc_tiles * lorc_pieces; }
  std::string ToString() const;
};

Regime ChooseRegime(int64_t tokens);

// Shared memory of a decode block: byte offsets from a multiple of kSharedAlignment.
//   0        [stages][token tile][128] x, rows of 128 bytes under the 128-byte swizzle
//   codes    [stages][warpgroups][slice]; after the last slice the sums, f32 [token tile][SumPitch]
//   lorc     [warpgroups] factor A as in RowTile, then t: bf16 [token tile][LorcPitch bytes]
//   small    fold tables, then the tokens' scales
//   barriers full [stages], empty [stages], LoRC
inline constexpr int kSharedAlignment = 1024;
inline constexpr int kFoldTableBytes = 16 * 8;
struct DecodeShared {
  int codes = 0;
  int lorc = 0;
  int small = 0;
  int barriers = 0;
  int bytes = 0;
};
// Floats from one token's sums to the next's, and bytes from one token's t to the next's: padded
// such that a warp's fragments fall into different banks.
NIBBLE_HOST_DEVICE constexpr int SumPitch(int warpgroups) { return warpgroups * kTileRows + 4; }
NIBBLE_HOST_DEVICE constexpr int LorcPitch(int rank) { return 2 * rank + 16; }

DecodeShared DecodeSharedMemory(const DecodePlan& plan, const LinearShape& shape);

// shape.tokens in 1..64; a shape whose shared memory does not fit is the launcher's to refuse.
DecodePlan PlanDecode(const LinearShape& shape, const Device& device = {});

}  // namespace nibble::w4a8
