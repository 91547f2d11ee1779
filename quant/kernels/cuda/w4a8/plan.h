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
  int ranks = 0;          // LoRC ranks of all segments, each rounded up to 16
  int max_rank = 0;       // of one segment
  bool overlaps = false;  // the launch may begin while the kernel before it runs
};

enum class Regime : uint8_t { kDecode, kMedium, kPrefill };

// The largest number of tokens of the decode regime.
inline constexpr int kDecodeTokens = 64;
// The most parts of K of a LoRC tile, one block each: a multiple of every number of splits.
inline constexpr int kMaxLorcPieces = 8;
// The most warpgroups that multiply in one block.
inline constexpr int kMaxWarpgroups = 4;

// Decode: reads the weights once, at the speed of memory.
// K is cut into `parts()` parts of equally many slices (the last may have fewer). A thread block
// takes `tiles` row tiles and `k_groups` neighbouring parts, with a warpgroup for each tile and
// part; `splits` blocks, a cluster, share the row tiles. Parts are added as the leaves of a
// balanced binary tree, in the order of K, so sums depend on the number of parts, which follows
// from the weights only (rows, columns, kind, LoRC's ranks), and neither on the number of tokens
// nor on who takes which part. Of every row tile, a block of the cluster writes the
// `owned_octets()` octets of tokens that it owns; of fewer octets than blocks, the first own one
// each.
struct DecodePlan {
  int token_tile = 0;   // 8, 16, 32 or 64 columns of the product
  int tiles = 0;        // row tiles of a block: 1 to 4
  int k_groups = 0;     // parts of K of a block: 1, 2 or 4; tiles * k_groups <= kMaxWarpgroups
  int splits = 0;       // 1, 2 or 4, and 8 in races
  int stages = 0;       // slices (each of `tiles` row tiles) in flight, a multiple of k_groups
  int lorc_tiles = 0;   // 0: no LoRC
  int lorc_pieces = 0;  // of K, for each LoRC tile: a power of two
  int row_blocks = 0;
  int shared_bytes = 0;

  NIBBLE_HOST_DEVICE int warpgroups() const { return tiles * k_groups; }
  NIBBLE_HOST_DEVICE int parts() const { return k_groups * splits; }
  NIBBLE_HOST_DEVICE int owned_octets() const {
    return token_tile > 8 * splits ? token_tile / (8 * splits) : 1;
  }
  NIBBLE_HOST_DEVICE int threads() const { return 128 * warpgroups() + 32; }  // and a loading warp
  NIBBLE_HOST_DEVICE int lorc_blocks() const { return lorc_tiles * lorc_pieces; }
  int blocks() const { return row_blocks * splits + lorc_blocks(); }
  std::string ToString() const;
};

Regime ChooseRegime(int64_t tokens);

// Shared memory of a decode block: byte offsets from a multiple of kSharedAlignment.
//   0        [stages][token tile][128] x, rows of 128 bytes under the 128-byte swizzle
//   codes    [stages][tiles][slice]
//   parts    over x and codes after the last slice: what parts leave for each other, octets of sums
//            [tiles][k_groups][token tile / 8]
//   staging  after them, y on its way: bf16 [warpgroups][token tile][64]
//   received what other blocks of the cluster send: octets [splits - 1][tiles][owned_octets()]
//   factor   [tiles] LoRC factor A as in RowTile
//   t        [tiles] bf16 [token tile][LorcPitch bytes]
//   small    fold tables, the tokens' scales, f32 row scales [tiles * 64], bf16 bias [tiles * 64]
//   barriers full [stages], empty [stages], side (all that comes beside the slices), received
// A LoRC block has its own slices, of up to kLorcSliceBytes, in the codes' place.
inline constexpr int kSharedAlignment = 1024;
inline constexpr int kFoldTableBytes = 16 * 8;
struct DecodeShared {
  int codes = 0;
  int staging = 0;
  int received = 0;
  int factor = 0;
  int t = 0;
  int small = 0;
  int barriers = 0;
  int bytes = 0;
};
// An octet of sums: of a row tile and eight tokens, four floats of each thread of a warpgroup.
inline constexpr int kOctetBytes = kTileRows * 8 * 4;
// Bytes from one token's t to the next's: padded such that a warp's fragments fall into different
// banks.
NIBBLE_HOST_DEVICE constexpr int LorcPitch(int rank) { return 2 * rank + 16; }

DecodeShared DecodeSharedMemory(const DecodePlan& plan, const LinearShape& shape);

// shape.tokens in 1..64; a shape whose shared memory does not fit is the launcher's to refuse.
DecodePlan PlanDecode(const LinearShape& shape, const Device& device = {});

// Fills in what follows from token_tile, tiles, k_groups, splits and lorc_pieces: as many stages as
// fit if `blocks` blocks are to share a multiprocessor, or fewer blocks where these would have too
// few, at most `max_stages`.
void CompletePlan(const LinearShape& shape, const Device& device, int blocks, int max_stages,
                  DecodePlan& plan);

}  // namespace nibble::w4a8
