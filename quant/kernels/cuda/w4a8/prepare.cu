// The arrangement of weights at load; layout.h has the layout.
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <vector>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/formats/number.h"
#include "quant/kernels/cuda/launch.h"
#include "quant/kernels/cuda/w4a8/linear.h"

namespace nibble::w4a8 {
namespace {

constexpr int kThreads = 256;

// --- Kernels. `first_tile` is the segment's first row tile in the prepared matrix.

__device__ int64_t Groups(const DeviceQuantizedMatrix& m) {
  return m.spec.group_size == kWholeRow ? 1 : CeilDiv(m.cols, m.spec.group_size);
}

// The largest exponent of an M1 row.
__device__ int LargestExponent(const DeviceQuantizedMatrix& m, int64_t row) {
  const int64_t groups = Groups(m);
  int largest = -128;
  for (int64_t g = 0; g < groups; ++g) {
    largest = max(largest, static_cast<int>(m.exponent[row * groups + g]));
  }
  return largest;
}

// The exponent below the row's scale of an M1 or M2 group.
__device__ int GroupK(const DeviceQuantizedMatrix& m, int64_t row, int64_t group, int largest) {
  const int64_t groups = Groups(m);
  if (m.spec.constraint == ScaleConstraint::kM1) return largest - m.exponent[row * groups + group];
  return m.k[row * ((groups + 1) / 2) + group / 2] >> (4 * (group % 2)) & 0xf;
}

__device__ float RowScale(const DeviceQuantizedMatrix& m, int64_t row, int largest) {
  return m.spec.constraint == ScaleConstraint::kM1 ? ldexpf(1.f, largest) : m.row_scale[row];
}

// One thread a row; rows beyond the matrix get 1.
__global__ void ArrangeRowScales(DeviceQuantizedMatrix m, Kind kind, float* row_scale) {
  const int64_t row = int64_t{blockIdx.x} * kTileRows + threadIdx.x;
  float scale = 1;
  if (kind == Kind::kFolded && row < m.rows) {
    const int largest = m.spec.constraint == ScaleConstraint::kM1 ? LargestExponent(m, row) : 0;
    scale = ldexpf(RowScale(m, row, largest), -FoldBias(m.spec.format));
  }
  row_scale[row] = scale;
}

__device__ uint32_t CodeAt(const DeviceQuantizedMatrix& m, bool bytes, int64_t row, int64_t col) {
  if (row >= m.rows || col >= m.cols) return 0;
  if (bytes) return m.codes[row * m.cols + col];
  return m.codes[row * ((m.cols + 1) / 2) + col / 2] >> (4 * (col % 2)) & 0xf;
}

// Where the slices of a matrix go, of a PreparedLinear's row tiles from `first_tile` on.
struct SlicePlaces {
  uint8_t* slices;
  int slice_bytes;
  int64_t first_tile;
  int64_t row_tiles;

  __device__ uint8_t* At(int64_t slice, int64_t tile) const {
    return slices + SliceIndex(slice, first_tile + tile, row_tiles) * slice_bytes;
  }
};

// One thread four neighbouring columns of a row, which share a 32-bit word; a block one slice.
__global__ void ArrangeCodes(DeviceQuantizedMatrix m, Kind kind, SlicePlaces places) {
  const int64_t slice = blockIdx.x;
  const int64_t tile = blockIdx.y;
  uint8_t* to = places.At(slice, tile);
  for (int i = static_cast<int>(threadIdx.x); i < kTileRows * kSliceCols / 4; i += kThreads) {
    const int row = i / (kSliceCols / 4);
    const int col = i % (kSliceCols / 4) * 4;
    const auto code = [&](int j) {
      return CodeAt(m, kind == Kind::kScaled8, tile * kTileRows + row,
                    slice * kSliceCols + col + j);
    };
    if (kind == Kind::kScaled8) {
      *reinterpret_cast<uint32_t*>(to + PlaceOfByte(row, col)) =
          code(0) | code(1) << 8 | code(2) << 16 | code(3) << 24;
      continue;
    }
    // The word is shared with the columns 16 on, whose thread must not store it too.
    if (col % kStepCols >= kStepCols / 2) continue;
    uint32_t word = 0;
    for (int j = 0; j < 8; ++j) {
      const int c = j / 4 * 16 + j % 4;
      const NibblePlace place = PlaceOfNibble(row, col + c);
      word |= (code(c) & 7) << place.magnitude | (code(c) >> 3) << place.sign;
    }
    *reinterpret_cast<uint32_t*>(to + PlaceOfNibble(row, col).word) = word;
  }
}

// One thread the scales of one row (scaled) or of rows r and r + 8 (folded); a block one slice.
__global__ void ArrangeScales(DeviceQuantizedMatrix m, Kind kind, SlicePlaces places) {
  const int64_t slice = blockIdx.x;
  const int64_t tile = blockIdx.y;
  uint8_t* to = places.At(slice, tile) + CodeBytes(kind);
  const int local = static_cast<int>(threadIdx.x);
  const int64_t row = tile * kTileRows + local;
  const int64_t groups = Groups(m);
  const bool exists = row < m.rows;
  const bool m1 = m.spec.constraint == ScaleConstraint::kM1;
  const int largest = exists && m1 ? LargestExponent(m, row) : 0;
  for (int g = 0; g < GroupsPerSlice(m.spec.group_size); ++g) {
    const int64_t group =
        m.spec.group_size == kWholeRow ? 0 : slice * kSliceCols / m.spec.group_size + g;
    const bool used = exists && group < groups;
    if (kind != Kind::kFolded) {
      float scale = 0;
      if (used && m.spec.constraint == ScaleConstraint::kNone) {
        scale = m.scale[row * groups + group];
      } else if (used) {
        scale = ldexpf(RowScale(m, row, largest), -GroupK(m, row, group, largest));
      }
      *reinterpret_cast<float*>(to + PlaceOfScale(local, g)) = scale;
      continue;
    }
    // Lanes r and r + 8 of a half warp hold the two halves of a byte.
    const int k = used ? GroupK(m, row, group, largest) : 0;
    const int other = __shfl_down_sync(0xffffffffu, k, 8);
    if (local % 16 < 8) to[PlaceOfK(local, g)] = static_cast<uint8_t>(k | other << 4);
  }
}

// bias of the segment's row tiles, padded by zeros. One thread a row.
__global__ void ArrangeBias(const __nv_bfloat16* bias, int64_t rows, __nv_bfloat16* to) {
  const int64_t row = int64_t{blockIdx.x} * kTileRows + threadIdx.x;
  to[row] = bias != nullptr && row < rows ? bias[row] : __float2bfloat16(0.f);
}

// Factor A as MmaBf16's fragments: a block of 128 threads one row tile and 16 ranks.
__global__ void ArrangeLorcA(const __nv_bfloat16* a, int64_t rows, int rank, uint4* to) {
  const int thread = static_cast<int>(threadIdx.x);
  const int band = static_cast<int>(blockIdx.x);
  const int64_t tile = blockIdx.y;
  __align__(16) __nv_bfloat16 fragment[8];
  for (int i = 0; i < 8; ++i) {
    const int64_t row = tile * kTileRows + RowOf(thread, i / 2 % 2);
    const int r = band * kRankBand + thread % 4 * 2 + i % 2 + i / 4 * 8;
    fragment[i] = row < rows && r < rank ? a[row * rank + r] : __float2bfloat16(0.f);
  }
  to[(tile * gridDim.x + band) * 128 + thread] = *reinterpret_cast<const uint4*>(fragment);
}

// One block a rank: 2^e with the row's largest |b| 2^-e in 128..256.
__global__ void ScaleLorcB(const __nv_bfloat16* b, int rank, int64_t cols, float* scale) {
  const int r = static_cast<int>(blockIdx.x);
  float largest = 0;
  for (int64_t col = threadIdx.x; r < rank && col < cols; col += kThreads) {
    largest = fmaxf(largest, fabsf(__bfloat162float(b[r * cols + col])));
  }
  __shared__ float warps[kThreads / 32];
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, lanes));
  }
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = largest;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (const float other : warps) largest = fmaxf(largest, other);
  scale[r] = largest > 0 ? ldexpf(1.f, ilogbf(largest) - 7) : 1.f;
}

// One thread a (column, rank); a block one slice of one rank. `first_rank` counts the ranks of the
// segments before, `ranks` those of all.
__global__ void ArrangeLorcB(const __nv_bfloat16* b, int rank, int64_t cols, int first_rank,
                             int ranks, const float* scale, uint8_t* to) {
  const int64_t slice = blockIdx.x;
  const int r = static_cast<int>(blockIdx.y);
  const int tile = (first_rank + r) / kLorcTileRanks;
  const int row = (first_rank + r) % kLorcTileRanks;
  const int bands = LorcBands(ranks, tile);
  const int col = static_cast<int>(threadIdx.x);
  const int64_t matrix_col = slice * kSliceCols + col;
  float value = 0;
  if (r < rank && matrix_col < cols) {
    value = __bfloat162float(b[r * cols + matrix_col]) / scale[first_rank + r];
  }
  const auto encode = [](float v) {
    return static_cast<uint8_t>(__nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E4M3));
  };
  __nv_fp8_e4m3 high;
  high.__x = encode(value);
  const float rest = (value - static_cast<float>(high)) * (1 << kLorcLowShift);
  uint8_t* slices =
      to + (int64_t{tile} * gridDim.x * kLorcSliceBytes) + slice * LorcSliceBytes(bands);
  slices[PlaceOfByte(row, col, bands)] = high.__x;
  slices[PlaceOfByte(bands / 2 * kBandRows + row, col, bands)] = encode(rest);
}

// --- Host.

absl::StatusOr<Kind> KindOf(const WeightSpec& spec) {
  NIBBLE_RETURN_IF_ERROR(spec.Validate());
  if (spec.format == Format::kE4M3) return Kind::kScaled8;
  if (spec.format == Format::kE2M1 || spec.format == Format::kE3M0) {
    return spec.constraint == ScaleConstraint::kNone ? Kind::kScaled4 : Kind::kFolded;
  }
  return absl::InvalidArgumentError(
      StrCat("weight format: found ", FormatName(spec.format), ", expected e2m1, e3m0 or e4m3"));
}

absl::Status CheckMatrix(const DeviceQuantizedMatrix& m) {
  if (m.rows <= 0 || m.cols <= 0) {
    return absl::InvalidArgumentError(
        StrCat("weight: found shape [", m.rows, ", ", m.cols, "], expected positive sizes"));
  }
  NIBBLE_RETURN_IF_ERROR(CheckPointer("codes", m.codes, 1));
  switch (m.spec.constraint) {
    case ScaleConstraint::kNone:
      return CheckPointer("scale", m.scale, 4);
    case ScaleConstraint::kM1:
      return CheckPointer("exponent", m.exponent, 1);
    case ScaleConstraint::kM2:
      break;
  }
  NIBBLE_RETURN_IF_ERROR(CheckPointer("k", m.k, 1));
  return CheckPointer("row_scale", m.row_scale, 4);
}

absl::Status CheckSegment(const Segment& segment, const Segment& first) {
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(segment.weight));
  const DeviceQuantizedMatrix& m = segment.weight;
  const DeviceQuantizedMatrix& expected = first.weight;
  if (m.cols != expected.cols || m.spec.format != expected.spec.format ||
      m.spec.constraint != expected.spec.constraint ||
      m.spec.group_size != expected.spec.group_size) {
    return absl::InvalidArgumentError(StrCat(
        "segments: found ", FormatName(m.spec.format), " ", ScaleConstraintName(m.spec.constraint),
        " in groups of ", m.spec.group_size, " and ", m.cols, " columns, expected the first one's ",
        FormatName(expected.spec.format), " ", ScaleConstraintName(expected.spec.constraint),
        " in groups of ", expected.spec.group_size, " and ", expected.cols));
  }
  if (segment.rank < 0 || segment.rank > kMaxRank) {
    return absl::InvalidArgumentError(
        StrCat("rank: found ", segment.rank, ", expected 0..", kMaxRank));
  }
  if (segment.rank == 0) return absl::OkStatus();
  NIBBLE_RETURN_IF_ERROR(CheckPointer("lorc_a", segment.lorc_a, 2));
  return CheckPointer("lorc_b", segment.lorc_b, 2);
}

// Cuts `memory` into arrays; with a null pointer it only counts.
class Arrays {
 public:
  explicit Arrays(void* memory) : at_(static_cast<uint8_t*>(memory)) {}

  template <class T>
  T* Take(int64_t count) {
    uint8_t* array = at_;
    const size_t bytes = RoundUp(count * static_cast<int64_t>(sizeof(T)), 256);
    bytes_ += bytes;
    if (at_ != nullptr) at_ += bytes;
    return reinterpret_cast<T*>(array);
  }
  size_t bytes() const { return bytes_; }

 private:
  uint8_t* at_;
  size_t bytes_ = 0;
};

// The prepared form of `segments` with its arrays laid out in `arrays`, not filled.
absl::StatusOr<PreparedLinear> LayOut(absl::Span<const Segment> segments, Arrays& arrays) {
  if (segments.empty() || segments.size() > kMaxSegments) {
    return absl::InvalidArgumentError(
        StrCat("segments: found ", segments.size(), ", expected 1..", kMaxSegments));
  }
  const DeviceQuantizedMatrix& first = segments[0].weight;
  PreparedLinear out{
      .format = first.spec.format, .group_size = first.spec.group_size, .cols = first.cols};
  NIBBLE_ASSIGN_OR_RETURN(out.kind, KindOf(first.spec));
  int64_t lorc_a = 0;
  bool bias = false;
  for (const Segment& segment : segments) {
    NIBBLE_RETURN_IF_ERROR(CheckSegment(segment, segments[0]));
    const int rank = static_cast<int>(RoundUp(segment.rank, kRankBand));
    out.segments.at[out.segments.count++] = {.rows = static_cast<int>(segment.weight.rows),
                                             .first_tile = static_cast<int>(out.row_tiles),
                                             .first_col = static_cast<int>(out.rows),
                                             .first_rank = out.ranks,
                                             .rank = rank,
                                             .lorc_a_tile = lorc_a};
    const int64_t tiles = CeilDiv(segment.weight.rows, kTileRows);
    out.rows += segment.weight.rows;
    out.row_tiles += tiles;
    out.ranks += rank;
    out.max_rank = std::max(out.max_rank, rank);
    lorc_a += tiles * LorcAUnits(rank);
    bias = bias || segment.bias != nullptr;
  }
  out.slices = arrays.Take<uint8_t>(out.row_tiles * out.slice_count() *
                                    SliceBytes(out.kind, out.group_size));
  out.row_scale = arrays.Take<float>(out.row_tiles * kTileRows);
  if (bias) out.bias = arrays.Take<__nv_bfloat16>(out.row_tiles * kTileRows);
  if (out.ranks > 0) {
    out.lorc_a = arrays.Take<uint4>(lorc_a);
    out.lorc_b = arrays.Take<uint8_t>(2 * int64_t{out.ranks} * out.slice_count() * kSliceCols);
    out.lorc_scale = arrays.Take<float>(out.ranks);
  }
  return out;
}

// The arrays of `out` as this file's kernels write them.
template <class T>
T* Writable(const T* array) {
  return const_cast<T*>(array);
}

absl::Status FillWeights(const PreparedLinear& out, const SegmentPlace& place,
                         const Segment& segment, cudaStream_t stream) {
  const SlicePlaces places = {Writable(out.slices), SliceBytes(out.kind, out.group_size),
                              place.first_tile, out.row_tiles};
  const auto slice_count = static_cast<unsigned>(out.slice_count());
  const auto tiles = static_cast<unsigned>(CeilDiv(place.rows, kTileRows));
  const dim3 grid(slice_count, tiles);
  const int64_t first_row = int64_t{place.first_tile} * kTileRows;
  ArrangeRowScales<<<tiles, kTileRows, 0, stream>>>(segment.weight, out.kind,
                                                    Writable(out.row_scale) + first_row);
  NIBBLE_RETURN_IF_ERROR(CheckLaunch("ArrangeRowScales"));
  ArrangeCodes<<<grid, kThreads, 0, stream>>>(segment.weight, out.kind, places);
  NIBBLE_RETURN_IF_ERROR(CheckLaunch("ArrangeCodes"));
  ArrangeScales<<<grid, kTileRows, 0, stream>>>(segment.weight, out.kind, places);
  NIBBLE_RETURN_IF_ERROR(CheckLaunch("ArrangeScales"));
  if (out.bias == nullptr) return absl::OkStatus();
  ArrangeBias<<<tiles, kTileRows, 0, stream>>>(segment.bias, segment.weight.rows,
                                               Writable(out.bias) + first_row);
  return CheckLaunch("ArrangeBias");
}

absl::Status FillLorc(const PreparedLinear& out, const SegmentPlace& place, const Segment& segment,
                      cudaStream_t stream) {
  const auto tiles = static_cast<unsigned>(CeilDiv(place.rows, kTileRows));
  const auto rank = static_cast<unsigned>(place.rank);
  ArrangeLorcA<<<dim3(rank / kRankBand, tiles), 128, 0, stream>>>(
      segment.lorc_a, segment.weight.rows, segment.rank, Writable(out.lorc_a) + place.lorc_a_tile);
  NIBBLE_RETURN_IF_ERROR(CheckLaunch("ArrangeLorcA"));
  ScaleLorcB<<<rank, kThreads, 0, stream>>>(segment.lorc_b, segment.rank, out.cols,
                                            Writable(out.lorc_scale) + place.first_rank);
  NIBBLE_RETURN_IF_ERROR(CheckLaunch("ScaleLorcB"));
  const dim3 grid(static_cast<unsigned>(out.slice_count()), rank);
  ArrangeLorcB<<<grid, kSliceCols, 0, stream>>>(segment.lorc_b, segment.rank, out.cols,
                                                place.first_rank, out.ranks, out.lorc_scale,
                                                Writable(out.lorc_b));
  return CheckLaunch("ArrangeLorcB");
}

}  // namespace

absl::StatusOr<size_t> PreparedBytes(absl::Span<const Segment> segments) {
  Arrays arrays(nullptr);
  NIBBLE_RETURN_IF_ERROR(LayOut(segments, arrays).status());
  return arrays.bytes();
}

absl::StatusOr<PreparedLinear> Prepare(absl::Span<const Segment> segments, void* memory,
                                       cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(CheckPointer("memory", memory, 256));
  Arrays arrays(memory);
  NIBBLE_ASSIGN_OR_RETURN(const PreparedLinear out, LayOut(segments, arrays));
  for (size_t i = 0; i < segments.size(); ++i) {
    const SegmentPlace& place = out.segments.at[i];
    NIBBLE_RETURN_IF_ERROR(FillWeights(out, place, segments[i], stream));
    if (place.rank > 0) NIBBLE_RETURN_IF_ERROR(FillLorc(out, place, segments[i], stream));
  }
  return out;
}

}  // namespace nibble::w4a8
