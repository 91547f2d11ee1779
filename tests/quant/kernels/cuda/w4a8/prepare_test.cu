// Prepare on the device against layout.h's places, byte for byte, and what the interface refuses.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "quant/base/strings.h"
#include "quant/kernels/cuda/w4a8/linear.h"
#include "tests/quant/kernels/cuda/w4a8/prepared.h"
#include "tests/quant/kernels/cuda/w4a8/reference.h"

namespace nibble::w4a8 {
namespace {

// `count` values from a device address on.
template <class T>
std::vector<T> ReadDevice(const T* from, size_t count) {
  std::vector<T> values(count);
  ExpectCuda(cudaMemcpy(values.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost));
  return values;
}

// The bytes of `expected` up to `bytes` of them.
template <class T, class U>
void ExpectBytes(const char* name, const std::vector<T>& expected, const U* found, size_t bytes) {
  ASSERT_LE(bytes, expected.size() * sizeof(T)) << name;
  const std::vector<uint8_t> device = ReadDevice(reinterpret_cast<const uint8_t*>(found), bytes);
  const auto* host = reinterpret_cast<const uint8_t*>(expected.data());
  const auto [at, of] = std::mismatch(device.begin(), device.end(), host);
  EXPECT_TRUE(at == device.end()) << name << ": byte " << at - device.begin() << " of " << bytes
                                  << ": found " << int{*at} << ", expected " << int{*of};
}

void ExpectPrepared(const std::vector<HostSegment>& segments) {
  const Prepared prepared(segments);
  const ArrangedLinear host = Arrange(segments);
  const PreparedLinear& found = prepared.linear();
  const PreparedLinear& expected = host.linear;
  EXPECT_EQ(found.kind, Kind::kFolded);
  EXPECT_EQ(found.rows, expected.rows);
  EXPECT_EQ(found.cols, expected.cols);
  EXPECT_EQ(found.row_tiles, expected.row_tiles);
  EXPECT_EQ(found.ranks, expected.ranks);
  EXPECT_EQ(found.max_rank, expected.max_rank);
  ASSERT_EQ(found.segments.count, expected.segments.count);
  for (int s = 0; s < found.segments.count; ++s) {
    const SegmentPlace& a = found.segments.at[s];
    const SegmentPlace& b = expected.segments.at[s];
    EXPECT_TRUE(a.rows == b.rows && a.first_tile == b.first_tile && a.first_col == b.first_col &&
                a.first_rank == b.first_rank && a.rank == b.rank && a.lorc_a_tile == b.lorc_a_tile)
        << "segment " << s;
  }
  ExpectBytes("slices", host.slices, found.slices, host.slices.size());
  ExpectBytes("row_scale", host.row_scale, found.row_scale, host.row_scale.size() * 4);
  ASSERT_EQ(found.bias == nullptr, host.bias.empty());
  if (found.bias != nullptr) {
    ExpectBytes("bias", host.bias, found.bias, host.bias.size() * 2);
  }
  if (found.ranks == 0) return;
  ExpectBytes("lorc_a", host.lorc_a, found.lorc_a, host.lorc_a.size());
  ExpectBytes("lorc_scale", host.lorc_scale, found.lorc_scale, host.lorc_scale.size() * 4);
  // The host's last tile is always a whole one.
  ExpectBytes("lorc_b", host.lorc_b, found.lorc_b,
              2 * int64_t{found.ranks} * found.slice_count() * kSliceCols);
}

class Preparation : public testing::Test {
 protected:
  HostSegment RandomSegment(const WeightSpec& spec, int64_t rows, int64_t cols, bool bias,
                            int rank) {
    HostSegment segment{RandomMatrix(spec, rows, cols, kMaxExponentOffset, true, random_)};
    if (bias) segment.bias = Bf16Numbers(rows, 10, random_);
    segment.lorc_a = Bf16Numbers(rows * rank, 1, random_);
    segment.lorc_b = Bf16Numbers(rank * cols, 0.3f, random_);
    segment.rank = rank;
    return segment;
  }

  uint32_t seed_ = std::random_device{}();
  Random random_{seed_};
  testing::ScopedTrace trace_{__FILE__, __LINE__, StrCat("seed ", seed_)};
};

TEST_F(Preparation, PutsEveryByteWhereTheLayoutSays) {
  for (const Format format : {Format::kE2M1, Format::kE3M0}) {
    for (const ScaleConstraint constraint : {ScaleConstraint::kM1, ScaleConstraint::kM2}) {
      for (const int group_size : {16, 32, 64, 128, 256, 1024, kWholeRow}) {
        for (const auto& [rows, cols] :
             {std::pair{40, 100}, std::pair{64, 128}, std::pair{129, 515}, std::pair{300, 1301}}) {
          SCOPED_TRACE(StrCat(FormatName(format), " ", ScaleConstraintName(constraint), " group ",
                              group_size, " [", rows, ", ", cols, "]"));
          const WeightSpec spec = Spec(format, group_size, constraint);
          ExpectPrepared({RandomSegment(spec, rows, cols, rows % 2 == 0, 0)});
          if (HasFailure()) return;
        }
      }
    }
  }
}

TEST_F(Preparation, SegmentsBeginAtRowTilesAndRankBandsOfTheirOwn) {
  for (const int rank : {1, 16, 17, 24, 64, 128}) {
    SCOPED_TRACE(StrCat("rank ", rank));
    ExpectPrepared({RandomSegment(Spec(), 100, 520, true, rank),
                    RandomSegment(Spec(), 64, 520, false, 0),
                    RandomSegment(Spec(), 130, 520, false, 40)});
    if (HasFailure()) return;
  }
}

// Codes and scales of the kinds that scale partial sums, at their places.
TEST_F(Preparation, ScaledKindsKeepCodesAndScales) {
  constexpr int64_t kRows = 100;
  constexpr int64_t kCols = 300;
  const QuantizedMatrix m =
      RandomMatrix(Spec(Format::kE4M3, 64, ScaleConstraint::kNone), kRows, kCols, 3, true, random_);
  const Prepared prepared(std::vector<HostSegment>{{m}});
  const PreparedLinear& linear = prepared.linear();
  ASSERT_EQ(linear.kind, Kind::kScaled8);
  const int slice_bytes = SliceBytes(Kind::kScaled8, 64);
  const std::vector<uint8_t> slices =
      ReadDevice(linear.slices, linear.row_tiles * linear.slice_count() * slice_bytes);
  for (int64_t row = 0; row < 2 * kTileRows; ++row) {
    for (int64_t col = 0; col < linear.slice_count() * kSliceCols; ++col) {
      const uint8_t* slice =
          &slices[SliceIndex(col / kSliceCols, row / kTileRows, linear.row_tiles) * slice_bytes];
      const auto in_tile = static_cast<int>(row % kTileRows);
      const auto in_slice = static_cast<int>(col % kSliceCols);
      const bool exists = row < kRows && col < kCols;
      ASSERT_EQ(slice[PlaceOfByte(in_tile, in_slice)], exists ? m.codes[row * kCols + col] : 0)
          << row << ", " << col;
      float scale = 0;
      std::memcpy(&scale, slice + CodeBytes(Kind::kScaled8) + PlaceOfScale(in_tile, in_slice / 64),
                  4);
      const bool used = row < kRows && col / 64 < m.groups();
      ASSERT_EQ(scale, used ? m.GroupScaleAt(row, col / 64) : 0) << row << ", " << col;
    }
  }
}

// --- Refusals.

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

TEST_F(Preparation, RefusesSegmentsWithoutAKernel) {
  const DeviceSegments device({RandomSegment(Spec(), 64, 128, false, 16)});
  const Segment good = device.segments()[0];
  ASSERT_EQ(PreparedBytes({good}).status(), absl::OkStatus());
  const auto refused = [&](auto&& change) {
    Segment segment = good;
    change(segment);
    return PreparedBytes({segment}).status().code() == kInvalid;
  };
  EXPECT_TRUE(refused([](Segment& s) { s.weight.codes = nullptr; }));
  EXPECT_TRUE(refused([](Segment& s) { s.weight.k = nullptr; }));
  EXPECT_TRUE(refused([](Segment& s) { s.weight.row_scale = nullptr; }));
  EXPECT_TRUE(refused([](Segment& s) { s.weight.rows = 0; }));
  EXPECT_TRUE(refused([](Segment& s) { s.weight.cols = -1; }));
  EXPECT_TRUE(refused([](Segment& s) { s.weight.spec.group_size = 48; }));
  EXPECT_TRUE(refused([](Segment& s) { s.weight.spec.format = Format::kInt4; }));
  EXPECT_TRUE(refused([](Segment& s) { s.weight.spec.format = Format::kE5M2; }));
  EXPECT_TRUE(refused([](Segment& s) { s.lorc_a = nullptr; }));
  EXPECT_TRUE(refused([](Segment& s) { s.lorc_b = nullptr; }));
  EXPECT_TRUE(refused([](Segment& s) { s.rank = kMaxRank + 1; }));
  EXPECT_TRUE(refused([](Segment& s) { s.rank = -1; }));

  EXPECT_EQ(PreparedBytes({}).status().code(), kInvalid);
  EXPECT_EQ(PreparedBytes(std::vector<Segment>(kMaxSegments + 1, good)).status().code(), kInvalid);
  Segment other = good;
  other.weight.cols = 256;
  EXPECT_EQ(PreparedBytes({good, other}).status().code(), kInvalid);
  EXPECT_EQ(Prepare({good}, nullptr, nullptr).status().code(), kInvalid);
}

TEST_F(Preparation, RefusesCallsThatItCannotRun) {
  const Prepared weights({RandomSegment(Spec(), 64, 128, true, 16)});
  Workspace workspace(WorkspaceBytes(weights.linear(), 64));
  const Input input = MakeInput(64, 128, [] { return 1.f; });
  DeviceCall device(weights.linear(), input);
  const auto code = [&](auto&& change) {
    LinearCall call = device.Call(workspace.data(), true);
    change(call);
    return Launch(weights.linear(), call, nullptr).code();
  };
  EXPECT_EQ(code([](LinearCall&) {}), absl::StatusCode::kOk);
  EXPECT_EQ(code([](LinearCall& c) { c.tokens = 0; }), kInvalid);
  EXPECT_EQ(code([](LinearCall& c) { c.tokens = 16385; }), kInvalid);
  EXPECT_EQ(code([](LinearCall& c) { c.x = nullptr; }), kInvalid);
  EXPECT_EQ(code([](LinearCall& c) { c.x += 8; }), kInvalid);
  EXPECT_EQ(code([](LinearCall& c) { c.x_pitch = 112; }), kInvalid);
  EXPECT_EQ(code([](LinearCall& c) { c.x_pitch = 136; }), kInvalid);
  EXPECT_EQ(code([](LinearCall& c) { c.x_scale = nullptr; }), kInvalid);
  EXPECT_EQ(code([](LinearCall& c) { c.workspace = nullptr; }), kInvalid);
  EXPECT_EQ(code([](LinearCall& c) { c.y_f32 = nullptr; }), kInvalid);
  EXPECT_EQ(code([](LinearCall& c) { c.y_f32 += 1; }), kInvalid);
  EXPECT_EQ(code([](LinearCall& c) { c.y = reinterpret_cast<__nv_bfloat16*>(c.y_f32); }), kInvalid);
  ExpectCuda(cudaDeviceSynchronize());
}

}  // namespace
}  // namespace nibble::w4a8
