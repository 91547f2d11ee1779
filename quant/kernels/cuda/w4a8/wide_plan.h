// How a W4A8 product of more than kDecodeTokens tokens is cut up: a pure function of its shape,
// free of CUDA.
#pragma once

#include <cstdint>
#include <string>

#include "quant/kernels/cuda/w4a8/layout.h"
#include "quant/kernels/cuda/w4a8/plan.h"

namespace nibble::w4a8 {

// Where the E4M3 bytes of the weights come from.
//   kFolded    each block expands its 4-bit codes in registers, once per token tile
//   kExpanded  the grid's spare warps expand every code once, to scratch memory, some row tiles
//              ahead of the products that read them
enum class WideSource : uint8_t { kFolded, kExpanded };

// From here on expanding once is faster than once per token tile, if sums are promoted.
inline constexpr int kExpandedTokens = 1024;
// Two warpgroups multiply, one feeds them.
inline constexpr int kWideThreads = 3 * 128;
// Tokens that leave a block's registers through shared memory at once.
inline constexpr int kWideChunk = 64;

// The output is cut into cluster tiles of cluster * row_tiles row tiles by token_tile tokens. A
// persistent grid of clusters walks them; each block of a cluster has its own row tiles, and the
// cluster shares the activations, of which each block loads its part.
struct WidePlan {
  WideSource source = WideSource::kFolded;
  bool promoted = true;  // sums move to f32 after every slice, i.e. 128 columns
  int token_tile = 0;    // 128; 256 where sums are not promoted
  int row_tiles = 0;     // of a block: 2, one a warpgroup; 1, whose slices the warpgroups share
  int cluster = 0;       // blocks: 1, 2 or 4
  int stages = 0;        // slices in flight
  int row_groups = 0;    // cluster tiles over all rows
  int token_tiles = 0;
  int raster = 0;    // token tiles that are walked before the next row group
  int clusters = 0;  // of the grid
  int shared_bytes = 0;

  int blocks() const { return clusters * cluster; }
  NIBBLE_HOST_DEVICE constexpr int tiles() const { return row_groups * token_tiles; }
  std::string ToString() const;
};

// The `index`th cluster tile of the walk: all row groups for `raster` token tiles, then for the
// next ones, so that what the blocks read at one time fits the second-level cache.
struct WideTile {
  int row_group;
  int token_tile;
};
NIBBLE_HOST_DEVICE constexpr WideTile WideTileAt(int index, int row_groups, int token_tiles,
                                                 int raster) {
  const int band = index / (raster * row_groups);
  const int left = token_tiles - band * raster;
  const int width = left < raster ? left : raster;
  const int in_band = index - band * raster * row_groups;
  return {in_band / width, band * raster + in_band % width};
}

// Shared memory of a block: byte offsets from a multiple of kSharedAlignment.
//   0         [stages][token tile][128] x, rows of 128 bytes under the 128-byte swizzle
//   weights   [stages][row tiles][weight bytes] a slice's codes and scales, or its E4M3 bytes
//   staging   what the warpgroups exchange (row_tiles 1), then per warpgroup [64 tokens][64 rows]
//             bf16 under the 128-byte swizzle
//   small     fold tables, then per warpgroup the tokens' scales
//   barriers  full [stages], empty [stages]
struct WideShared {
  int weights = 0;
  int staging = 0;
  int small = 0;
  int barriers = 0;
  int bytes = 0;
};
WideShared WideSharedMemory(const WidePlan& plan, const LinearShape& shape);

NIBBLE_HOST_DEVICE constexpr int ExpandedSliceBytes() { return kTileRows * kSliceCols; }
NIBBLE_HOST_DEVICE constexpr int StagingBytes(int row_tiles, int token_tile) {
  return row_tiles == 1 ? token_tile * kTileRows * 4 : 2 * kWideChunk * kTileRows * 2;
}

// What the caller may force, to race one choice against another; 0: the plan's own.
struct WideChoice {
  int expanded = 0;  // 1: kExpanded, -1: kFolded
  int row_tiles = 0;
  int cluster = 0;
};

// shape.kind kFolded, shape.tokens above kDecodeTokens.
WidePlan PlanWide(const LinearShape& shape, bool promoted, const Device& device = {},
                  const WideChoice& choice = {});

// Memory that a wide product needs, by offset:
//   0         counters (layout.h)
//   expanded  [row tiles][slices][ExpandedSliceBytes] for kExpanded
//   t         bf16 [tokens rounded up to 256][ranks]: LoRC's x B^T
inline constexpr int64_t kWideTokenPadding = 256;
struct WideWorkspace {
  int64_t expanded = 0;
  int64_t t = 0;
  int64_t bytes = 0;
};
WideWorkspace WideWorkspaceMemory(const LinearShape& shape, WideSource source);

}  // namespace nibble::w4a8
