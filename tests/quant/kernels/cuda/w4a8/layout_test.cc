// The layout, the fold tables and the expansion's bit tricks, against the format library.
#include "quant/kernels/cuda/w4a8/layout.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <utility>

namespace nibble::w4a8 {
namespace {

uint8_t TableByte(const FoldTable& table, int magnitude) {
  return static_cast<uint8_t>((magnitude < 4 ? table.low : table.high) >> (magnitude % 4 * 8));
}

TEST(FoldTable, EveryCodeAndExponentIsExact) {
  for (const Format format : {Format::kE2M1, Format::kE3M0}) {
    for (int k = 0; k <= kMaxExponentOffset; ++k) {
      const FoldTable table = MakeFoldTable(format, k);
      for (int code = 0; code < 16; ++code) {
        const auto sign = static_cast<uint8_t>(code >= 8 ? 0x80 : 0);
        const auto byte = static_cast<uint8_t>(TableByte(table, code & 7) | sign);
        const double expected =
            static_cast<double>(DecodeValue(format, static_cast<uint8_t>(code))) *
            std::ldexp(1.0, FoldBias(format) - k);
        ASSERT_EQ(DecodeValue(Format::kE4M3, byte), expected)
            << FormatName(format) << " code " << code << " k " << k;
        ASSERT_EQ(byte, FoldExponent(format, static_cast<uint8_t>(code), k));
      }
    }
  }
}

TEST(Layout, EveryNibbleHasItsOwnBits) {
  std::set<std::pair<int, int>> bits;  // (word, bit)
  for (int row = 0; row < kTileRows; ++row) {
    for (int col = 0; col < kSliceCols; ++col) {
      const NibblePlace place = PlaceOfNibble(row, col);
      ASSERT_LT(place.word, CodeBytes(Kind::kFolded));
      for (int b = 0; b < 3; ++b) bits.emplace(place.word, place.magnitude + b);
      bits.emplace(place.word, place.sign);
    }
  }
  EXPECT_EQ(bits.size(), 4u * kTileRows * kSliceCols);
}

// The device's expansion, with the PRMT written out.
void Expand(uint32_t word, const FoldTable& table, uint32_t& lower, uint32_t& upper) {
  const auto permute = [&](uint32_t selector) {
    uint32_t out = 0;
    for (int i = 0; i < 4; ++i) {
      out |= uint32_t{TableByte(table, selector >> (4 * i) & 7)} << (8 * i);
    }
    return out;
  };
  lower = permute(word & 0x7777u) | (word & 0x80808080u);
  upper = permute(word >> 16 & 0x7777u) | ((word << 4) & 0x80808080u);
}

TEST(Layout, AWordExpandsToTheFragmentOfItsRow) {
  constexpr int kRow = 29;  // warp 1, half 1, g 5
  for (int step = 0; step < 4; ++step) {
    for (int code = 0; code < 16; ++code) {
      for (int col = 32 * step; col < 32 * step + 32; ++col) {
        const NibblePlace place = PlaceOfNibble(kRow, col);
        const uint32_t word = static_cast<uint32_t>(code & 7) << place.magnitude |
                              static_cast<uint32_t>(code >> 3) << place.sign;
        uint32_t registers[2];
        Expand(word, MakeFoldTable(Format::kE2M1, 3), registers[0], registers[1]);
        const FragmentPlace fragment = PlaceInFragment(kRow, col);
        EXPECT_EQ(fragment.thread, 32 + 5 * 4 + col % 16 / 4);
        EXPECT_EQ(RowOf(fragment.thread, fragment.half), kRow);
        const auto byte = static_cast<uint8_t>(registers[fragment.upper] >> (8 * fragment.index));
        ASSERT_EQ(byte, FoldExponent(Format::kE2M1, static_cast<uint8_t>(code), 3))
            << "column " << col << " code " << code;
        registers[fragment.upper] &= ~(0xffu << (8 * fragment.index));
        EXPECT_EQ(registers[0] | registers[1], 0u) << "column " << col << " code " << code;
      }
    }
  }
}

TEST(Layout, EveryByteHasItsOwnPlaceInAnyNumberOfBands) {
  for (const int bands : {2, 4}) {
    std::set<int> places;
    for (int row = 0; row < bands * kBandRows; ++row) {
      for (int col = 0; col < kSliceCols; ++col) places.insert(PlaceOfByte(row, col, bands));
    }
    EXPECT_EQ(static_cast<int>(places.size()), LorcSliceBytes(bands));
    EXPECT_EQ(*places.rbegin() + 1, LorcSliceBytes(bands));
  }
  EXPECT_EQ(LorcSliceBytes(4), CodeBytes(Kind::kScaled8));
}

TEST(Layout, ScalesOfRowPairsShareAByte) {
  std::set<std::pair<int, int>> places;
  for (int row = 0; row < kTileRows; ++row) places.emplace(PlaceOfK(row, 0), KShiftOf(row));
  EXPECT_EQ(places.size(), 64u);
  EXPECT_EQ(PlaceOfK(16, 0), PlaceOfK(24, 0));
  EXPECT_EQ(PlaceOfK(3, 2), 67);
  EXPECT_EQ(PlaceOfScale(3, 2), 4 * 131);
}

TEST(Layout, SlicesHoldTheGroupsThatMeetThem) {
  EXPECT_EQ(SliceBytes(Kind::kFolded, 16), 4096 + 8 * 32);
  EXPECT_EQ(SliceBytes(Kind::kFolded, 128), 4096 + 32);
  EXPECT_EQ(SliceBytes(Kind::kFolded, 1024), 4096 + 32);
  EXPECT_EQ(SliceBytes(Kind::kFolded, kWholeRow), 4096 + 32);
  EXPECT_EQ(SliceBytes(Kind::kScaled4, 64), 4096 + 2 * 256);
  EXPECT_EQ(SliceBytes(Kind::kScaled8, 256), 8192 + 256);
}

TEST(Segments, TilesFindTheirRowsAndRanks) {
  SegmentTable table = {.count = 2};
  table.at[0] = {.rows = 100, .first_tile = 0, .first_col = 0, .first_rank = 0, .rank = 16};
  table.at[1] = {.rows = 64,
                 .first_tile = 2,
                 .first_col = 100,
                 .first_rank = 16,
                 .rank = 32,
                 .lorc_a_tile = 256};
  const RowTile second = Locate(table, 1);
  EXPECT_EQ(second.first_col, 64);
  EXPECT_EQ(second.rows, 36);
  EXPECT_EQ(second.lorc_a, 128);
  const RowTile third = Locate(table, 2);
  EXPECT_EQ(third.first_col, 100);
  EXPECT_EQ(third.rows, 64);
  EXPECT_EQ(third.first_rank, 16);
  EXPECT_EQ(third.rank, 32);
  EXPECT_EQ(third.lorc_a, 256);
}

TEST(Lorc, TilesOf32RanksHoldEachRankTwice) {
  EXPECT_EQ(LorcTiles(0), 0);
  EXPECT_EQ(LorcTiles(48), 2);
  EXPECT_EQ(LorcBands(48, 0), 4);
  EXPECT_EQ(LorcBands(48, 1), 2);
}

}  // namespace
}  // namespace nibble::w4a8
