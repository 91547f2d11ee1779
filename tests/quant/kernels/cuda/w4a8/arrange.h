// What Prepare makes of segments, done on the host value by value by layout.h's places: the
// oracle of Prepare, and the weights of tests that do without it.
#pragma once

#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "quant/formats/formats.h"
#include "quant/kernels/cuda/w4a8/linear.h"
#include "tests/quant/kernels/cuda/device_array.h"

namespace nibble::w4a8 {

struct HostSegment {
  QuantizedMatrix weight;          // folded kinds only
  std::vector<float> bias = {};    // [rows] or empty; bf16 numbers
  std::vector<float> lorc_a = {};  // [rows, rank] or empty; bf16 numbers
  std::vector<float> lorc_b = {};  // [rank, cols]
  int rank = 0;
};

// PreparedLinear's arrays on the host.
struct ArrangedLinear {
  PreparedLinear linear;  // without pointers
  std::vector<uint8_t> slices;
  std::vector<float> row_scale;
  std::vector<__nv_bfloat16> bias;
  std::vector<uint8_t> lorc_a;
  std::vector<uint8_t> lorc_b;
  std::vector<float> lorc_scale;
};

inline uint8_t CodeAt(const QuantizedMatrix& m, int64_t row, int64_t col) {
  return m.codes[row * ((m.cols + 1) / 2) + col / 2] >> (4 * (col % 2)) & 15;
}

// How far a group's scale lies below its row's, as a power of two.
inline int GroupOffset(const QuantizedMatrix& m, int64_t row, int64_t group) {
  if (m.spec.constraint == ScaleConstraint::kM2) {
    return m.k[row * ((m.groups() + 1) / 2) + group / 2] >> (4 * (group % 2)) & 15;
  }
  const auto first = m.exponent.begin() + row * m.groups();
  return *std::max_element(first, first + m.groups()) - first[group];
}

inline float RowScaleOf(const QuantizedMatrix& m, int64_t row) {
  if (m.spec.constraint == ScaleConstraint::kM2) return m.row_scale[row];
  const auto first = m.exponent.begin() + row * m.groups();
  return std::ldexp(1.f, *std::max_element(first, first + m.groups()));
}

inline SegmentTable PlaceSegments(const std::vector<HostSegment>& segments) {
  SegmentTable table = {};
  table.count = static_cast<int>(segments.size());
  int tile = 0;
  int col = 0;
  int rank = 0;
  int64_t units = 0;
  for (int s = 0; s < table.count; ++s) {
    const auto rows = static_cast<int>(segments[s].weight.rows);
    const int padded = static_cast<int>(RoundUp(segments[s].rank, kRankBand));
    table.at[s] = {rows, tile, col, rank, padded, units};
    const auto tiles = static_cast<int>(CeilDiv(rows, kTileRows));
    tile += tiles;
    col += rows;
    rank += padded;
    units += tiles * LorcAUnits(padded);
  }
  return table;
}

// One segment's codes and scales into the slices of its row tiles.
inline void ArrangeWeight(const QuantizedMatrix& m, int first_tile, ArrangedLinear& out) {
  const int slice_bytes = SliceBytes(Kind::kFolded, m.spec.group_size);
  const int groups = GroupsPerSlice(m.spec.group_size);
  const auto slice_of = [&](int64_t row, int64_t col) {
    return out.slices.data() +
           SliceIndex(col / kSliceCols, first_tile + row / kTileRows, out.linear.row_tiles) *
               slice_bytes;
  };
  for (int64_t row = 0; row < m.rows; ++row) {
    const auto in_tile = static_cast<int>(row % kTileRows);
    out.row_scale[first_tile * kTileRows + row] =
        std::ldexp(RowScaleOf(m, row), -FoldBias(m.spec.format));
    for (int64_t col = 0; col < m.cols; ++col) {
      const NibblePlace place = PlaceOfNibble(in_tile, static_cast<int>(col % kSliceCols));
      const uint32_t code = CodeAt(m, row, col);
      uint32_t word;
      uint8_t* at = slice_of(row, col) + place.word;
      std::memcpy(&word, at, 4);
      word |= (code & 7) << place.magnitude | code >> 3 << place.sign;
      std::memcpy(at, &word, 4);
    }
    const int64_t width = GroupWidth(m.cols, m.spec.group_size);
    for (int64_t col = 0; col < m.cols; col += kSliceCols / groups) {
      const auto group = static_cast<int>(col % kSliceCols / (kSliceCols / groups));
      slice_of(row, col)[CodeBytes(Kind::kFolded) + PlaceOfK(in_tile, group)] |=
          GroupOffset(m, row, col / width) << KShiftOf(in_tile);
    }
  }
}

// Factor A of one segment: [row tile][rank / 16][128 threads][16 B].
inline void ArrangeFactorA(const HostSegment& segment, const SegmentPlace& place,
                           std::vector<uint8_t>& out) {
  for (int64_t row = 0; row < segment.weight.rows; ++row) {
    for (int rank = 0; rank < segment.rank; ++rank) {
      const int64_t thread = row % 64 / 16 * 32 + row % 8 * 4 + rank % 8 / 2;
      const int64_t half = rank % 16 / 8 * 2 + row % 16 / 8;
      const int64_t unit =
          place.lorc_a_tile + row / 64 * LorcAUnits(place.rank) + rank / 16 * 128 + thread;
      const __nv_bfloat16 value = __float2bfloat16(segment.lorc_a[row * segment.rank + rank]);
      std::memcpy(&out[unit * 16 + half * 4 + rank % 2 * 2], &value, 2);
    }
  }
}

// One rank of factor B, b [cols], as two E4M3 rows of its LoRC tile.
inline void ArrangeFactorB(const float* b, int64_t cols, int rank, ArrangedLinear& out) {
  float largest = 0;
  for (int64_t col = 0; col < cols; ++col) largest = std::max(largest, std::fabs(b[col]));
  int exponent = 0;
  if (largest > 0) std::frexp(largest, &exponent);
  exponent -= 8;
  out.lorc_scale[rank] = std::ldexp(1.f, exponent);
  const int tile = rank / kLorcTileRanks;
  const int bands = LorcBands(out.linear.ranks, tile);
  const int row = rank % kLorcTileRanks;
  const int64_t slices = CeilDiv(cols, kSliceCols);
  uint8_t* to = out.lorc_b.data() + tile * slices * 2 * kLorcTileRanks * kSliceCols;
  for (int64_t col = 0; col < cols; ++col) {
    const float value = std::ldexp(b[col], -exponent);
    const uint8_t high = EncodeValue(Format::kE4M3, value);
    const float rest = std::ldexp(value - DecodeValue(Format::kE4M3, high), kLorcLowShift);
    uint8_t* slice = to + col / kSliceCols * LorcSliceBytes(bands);
    const auto in_slice = static_cast<int>(col % kSliceCols);
    slice[PlaceOfByte(row, in_slice, bands)] = high;
    slice[PlaceOfByte(row + bands / 2 * kRankBand, in_slice, bands)] =
        EncodeValue(Format::kE4M3, rest);
  }
}

// Segments of the same cols and spec, E2M1 or E3M0 under M1 or M2.
inline ArrangedLinear Arrange(const std::vector<HostSegment>& segments) {
  ArrangedLinear out;
  PreparedLinear& linear = out.linear;
  const QuantizedMatrix& first = segments[0].weight;
  linear.format = first.spec.format;
  linear.group_size = first.spec.group_size;
  linear.cols = first.cols;
  linear.segments = PlaceSegments(segments);
  bool any_bias = false;
  int64_t units = 0;
  for (size_t s = 0; s < segments.size(); ++s) {
    const SegmentPlace& place = linear.segments.at[s];
    linear.rows += place.rows;
    linear.row_tiles += CeilDiv(place.rows, kTileRows);
    linear.ranks += place.rank;
    linear.max_rank = std::max(linear.max_rank, place.rank);
    units += CeilDiv(place.rows, kTileRows) * LorcAUnits(place.rank);
    any_bias = any_bias || !segments[s].bias.empty();
  }
  out.slices.resize(linear.row_tiles * linear.slice_count() *
                    SliceBytes(Kind::kFolded, linear.group_size));
  out.row_scale.assign(linear.row_tiles * kTileRows, 1.f);
  if (any_bias) out.bias.assign(linear.row_tiles * kTileRows, __float2bfloat16(0.f));
  out.lorc_a.resize(units * 16);
  out.lorc_b.resize(LorcTiles(linear.ranks) * linear.slice_count() * 2 * kLorcTileRanks *
                    kSliceCols);
  out.lorc_scale.assign(linear.ranks, 1.f);
  for (size_t s = 0; s < segments.size(); ++s) {
    const HostSegment& segment = segments[s];
    const SegmentPlace& place = linear.segments.at[s];
    ArrangeWeight(segment.weight, place.first_tile, out);
    for (size_t row = 0; row < segment.bias.size(); ++row) {
      out.bias[place.first_tile * kTileRows + row] = __float2bfloat16(segment.bias[row]);
    }
    ArrangeFactorA(segment, place, out.lorc_a);
    for (int rank = 0; rank < segment.rank; ++rank) {
      ArrangeFactorB(segment.lorc_b.data() + rank * linear.cols, linear.cols,
                     place.first_rank + rank, out);
    }
  }
  return out;
}

// The arrays on the device.
class DeviceLinear {
 public:
  explicit DeviceLinear(const ArrangedLinear& host)
      : slices_(host.slices),
        row_scale_(host.row_scale),
        bias_(host.bias),
        lorc_a_(host.lorc_a),
        lorc_b_(host.lorc_b),
        lorc_scale_(host.lorc_scale),
        linear_(host.linear) {
    linear_.slices = slices_.data();
    linear_.row_scale = row_scale_.data();
    linear_.bias = host.bias.empty() ? nullptr : bias_.data();
    linear_.lorc_a = reinterpret_cast<const uint4*>(lorc_a_.data());
    linear_.lorc_b = lorc_b_.data();
    linear_.lorc_scale = lorc_scale_.data();
  }
  const PreparedLinear& linear() const { return linear_; }

 private:
  DeviceArray<uint8_t> slices_;
  DeviceArray<float> row_scale_;
  DeviceArray<__nv_bfloat16> bias_;
  DeviceArray<uint8_t> lorc_a_;
  DeviceArray<uint8_t> lorc_b_;
  DeviceArray<float> lorc_scale_;
  PreparedLinear linear_;
};

}  // namespace nibble::w4a8
