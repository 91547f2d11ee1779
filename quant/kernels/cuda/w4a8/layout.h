// Where a weight lies in the prepared matrix of the W4A8 linear: the one place that knows.
//
// The matrix [rows, cols] is cut into row tiles of 64 rows (the M of one wgmma) and slices of 128
// columns (four k-steps of 32, the interval at which partial sums are promoted). Missing rows and
// columns are zero codes. A slice holds its codes and then its scales, and is copied to shared
// memory as one piece:
//
//   prepared    [slice][row tile][SliceBytes]: what all blocks read at the same time lies together,
//               which memory delivers half again as fast as streams far apart
//   slice       codes, then scales of GroupsPerSlice groups
//     4 bits      [2 k-step pairs][128 threads][16 B]   16 B: words (k-step, row half), 8 codes
//     8 bits      [4 k-steps][row bands of 16][32 lanes][16 B]
//   scales
//     folded      [groups][32]  one byte: k of row r (low nibble) and of row r + 8 (high)
//     scaled      [groups][64]  f32
//
// Threads are those of the wgmma A fragment: row = 16 * (thread / 32) + thread % 32 / 4 + 8 * half,
// columns 32 * step + 16 * upper + 4 * (thread % 4) + 0..3. A 32-bit word of 4-bit codes holds the
// 8 codes of one row and k-step. Its magnitudes are nibbles 0..7, in the order (upper, column),
// which is a PRMT selector as it is; sign bits sit in bit 3 of the nibbles, permuted such that
// those of the four columns of `upper` 0 are bits 7, 15, 23, 31 (as the E4M3 bytes want them) and
// those of `upper` 1 the same bits after a shift by 4.
#pragma once

#include <cstdint>

#include "quant/formats/formats.h"

#ifdef __CUDACC__
#define NIBBLE_HOST_DEVICE __host__ __device__
#else
#define NIBBLE_HOST_DEVICE
#endif

namespace nibble::w4a8 {

inline constexpr int kTileRows = 64;
inline constexpr int kSliceCols = 128;
inline constexpr int kStepCols = 32;
inline constexpr int kBandRows = 16;
inline constexpr int kTilePairs = kTileRows / 2;

// How the scales of a matrix are applied.
enum class Kind : uint8_t {
  kFolded,   // 4-bit codes, M1 or M2: each group's exponent folded into the E4M3 bytes
  kScaled4,  // 4-bit codes, real scales: partial sums are scaled group by group
  kScaled8,  // E4M3 codes, any scales
};

NIBBLE_HOST_DEVICE constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
NIBBLE_HOST_DEVICE constexpr int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

// Groups that meet one slice, for groups of `group_size` columns (kWholeRow: one a row).
NIBBLE_HOST_DEVICE constexpr int GroupsPerSlice(int group_size) {
  return group_size == kWholeRow || group_size >= kSliceCols ? 1 : kSliceCols / group_size;
}

NIBBLE_HOST_DEVICE constexpr int CodeBytes(Kind kind) {
  return kind == Kind::kScaled8 ? kTileRows * kSliceCols : kTileRows * kSliceCols / 2;
}
NIBBLE_HOST_DEVICE constexpr int ScaleBytes(Kind kind) {  // of one group of a row tile
  return kind == Kind::kFolded ? kTilePairs : kTileRows * static_cast<int>(sizeof(float));
}
NIBBLE_HOST_DEVICE constexpr int SliceBytes(Kind kind, int group_size) {
  return CodeBytes(kind) + GroupsPerSlice(group_size) * ScaleBytes(kind);
}

// Which of the prepared slices that of a row tile is.
NIBBLE_HOST_DEVICE constexpr int64_t SliceIndex(int64_t slice, int64_t row_tile,
                                                int64_t row_tiles) {
  return slice * row_tiles + row_tile;
}

// The place of (row, col) in the A fragments of its slice.
struct FragmentPlace {
  int step;    // 0..3
  int thread;  // 0..127
  int half;    // 0: rows g, 1: rows g + 8
  int upper;   // 0: the first 16 columns of the k-step, 1: the others
  int index;   // 0..3, the byte of the register
};
NIBBLE_HOST_DEVICE constexpr FragmentPlace PlaceInFragment(int row, int col) {
  return {col / 32, row / 16 * 32 + row % 8 * 4 + col % 16 / 4, row % 16 / 8, col % 32 / 16,
          col % 4};
}
NIBBLE_HOST_DEVICE constexpr int RowOf(int thread, int half) {
  return thread / 32 * 16 + thread % 32 / 4 + 8 * half;
}

// 4-bit codes: byte offset of the word in the slice, and the bits in it.
struct NibblePlace {
  int word;       // a multiple of 4
  int magnitude;  // the lowest of three bits
  int sign;
};
NIBBLE_HOST_DEVICE constexpr NibblePlace PlaceOfNibble(int row, int col) {
  const FragmentPlace p = PlaceInFragment(row, col);
  return {p.step / 2 * 2048 + p.thread * 16 + (p.step % 2 * 2 + p.half) * 4,
          4 * (4 * p.upper + p.index), 8 * p.index + (p.upper == 0 ? 7 : 3)};
}

// 8-bit codes: byte offset in the slice of a tile of `bands` bands of 16 rows.
NIBBLE_HOST_DEVICE constexpr int PlaceOfByte(int row, int col, int bands = 4) {
  const FragmentPlace p = PlaceInFragment(row, col);
  return ((p.step * bands + p.thread / 32) * 32 + p.thread % 32) * 16 + (p.upper * 2 + p.half) * 4 +
         p.index;
}

// Scales, from the beginning of the slice's scales.
NIBBLE_HOST_DEVICE constexpr int PairOf(int row) { return row / 16 * 8 + row % 8; }
NIBBLE_HOST_DEVICE constexpr int PlaceOfK(int row, int group) {
  return group * kTilePairs + PairOf(row);
}
NIBBLE_HOST_DEVICE constexpr int KShiftOf(int row) { return row % 16 / 8 * 4; }
NIBBLE_HOST_DEVICE constexpr int PlaceOfScale(int row, int group) {
  return (group * kTileRows + row) * static_cast<int>(sizeof(float));
}

// The look-up table of the exponent fold: byte m is the E4M3 code of magnitude(m) * 2^(bias - k),
// m = 0..7, bias 6 for E2M1 and 4 for E3M0 (FoldExponent); k in 0..11.
struct FoldTable {
  uint32_t low;   // m = 0..3
  uint32_t high;  // m = 4..7
};
constexpr int FoldBias(Format format) { return format == Format::kE2M1 ? 6 : 4; }
NIBBLE_HOST_DEVICE constexpr FoldTable MakeFoldTable(Format format, int k) {
  // In normal numbers a step of k is 8 in the code. E2M1 never leaves them; of E3M0 the magnitudes
  // 2^(m + 1) fall below 2^-6 where m + 1 - k < -6, and there 2^-7, 2^-8, 2^-9 are codes 4, 2, 1.
  if (format == Format::kE2M1) {
    const uint32_t step = static_cast<uint32_t>(k) * 8u;
    return {0x6c686000u - step * 0x01010100u, 0x7c787470u - step * 0x01010101u};
  }
  uint32_t bytes[8] = {};
  for (int m = 1; m < 8; ++m) {
    const int exponent = m + 1 - k;
    bytes[m] = exponent >= -6 ? static_cast<uint32_t>(exponent + 7) * 8u : 8u >> (-6 - exponent);
  }
  return {bytes[1] << 8 | bytes[2] << 16 | bytes[3] << 24,
          bytes[4] | bytes[5] << 8 | bytes[6] << 16 | bytes[7] << 24};
}

// The matrices that one fused call multiplies, stacked by output rows; each begins at a row tile
// and (its LoRC ranks, rounded up to 16) at a band of its own.
inline constexpr int kMaxSegments = 4;
inline constexpr int kRankBand = 16;
inline constexpr int kMaxRank = 128;  // of one segment
struct SegmentPlace {
  int rows;
  int first_tile;
  int first_col;        // of the output
  int first_rank;       // among the ranks of all segments
  int rank;             // a multiple of 16, 0 without LoRC
  int64_t lorc_a_tile;  // offset of the first tile's factor A, in 16-byte units
};
struct SegmentTable {
  int count;
  SegmentPlace at[kMaxSegments];
};

// One row tile's share of the output and of the LoRC factors.
struct RowTile {
  int first_col;
  int rows;  // 1..64
  int first_rank;
  int rank;
  int64_t lorc_a;  // [rank / 16][128 threads][16 B]: A fragments of MmaBf16, a warp per 16 rows
};
NIBBLE_HOST_DEVICE constexpr int64_t LorcAUnits(int rank) { return int64_t{rank} / 16 * 128; }
NIBBLE_HOST_DEVICE constexpr RowTile Locate(const SegmentTable& segments, int tile) {
  int s = 0;
  while (s + 1 < segments.count && tile >= segments.at[s + 1].first_tile) ++s;
  const SegmentPlace& segment = segments.at[s];
  const int row = (tile - segment.first_tile) * kTileRows;
  const int left = segment.rows - row;
  return {segment.first_col + row, left < kTileRows ? left : kTileRows, segment.first_rank,
          segment.rank,
          segment.lorc_a_tile + (tile - segment.first_tile) * LorcAUnits(segment.rank)};
}

// LoRC's factor B, for t = x B^T, goes through the same products as 8-bit rows. A LoRC tile of up
// to 32 ranks holds each rank twice: hi = e4m3(b 2^-e) in bands 0.., lo = e4m3((b 2^-e - hi) 2^4)
// in the bands after, with 2^e per rank such that |b 2^-e| < 256. What is lost of b is at most 2^-8
// of it, as in bf16, or 2^-14 * 2^e.
//   prepared    [LoRC tile][slice][4 k-steps][bands][32 lanes][16 B]
inline constexpr int kLorcTileRanks = 32;
inline constexpr int kLorcLowShift = 4;
NIBBLE_HOST_DEVICE constexpr int LorcTiles(int ranks) {
  return static_cast<int>(CeilDiv(ranks, kLorcTileRanks));
}
NIBBLE_HOST_DEVICE constexpr int LorcBands(int ranks, int lorc_tile) {  // of 16 rows, both halves
  const int left = ranks - lorc_tile * kLorcTileRanks;
  return 2 * ((left < kLorcTileRanks ? left : kLorcTileRanks) / kRankBand);
}
NIBBLE_HOST_DEVICE constexpr int LorcSliceBytes(int bands) {
  return bands * kBandRows * kSliceCols;
}
inline constexpr int kLorcSliceBytes = 2 * kLorcTileRanks * kSliceCols;  // the largest

// The workspace of a launch begins with counters, which are zero between launches; the rest holds
// nothing then.
inline constexpr int64_t kWorkspaceCounterBytes = 64 * 1024;

}  // namespace nibble::w4a8
