// From a tile's sums to y: scales, LoRC, bias, and the turn from [row][token] to y's [token][row].
#pragma once

#include <cuda_bf16.h>

#include "quant/kernels/cuda/w4a8/layout.h"
#include "quant/kernels/cuda/w4a8/ptx.cuh"
#include "quant/kernels/cuda/w4a8/store.cuh"
#include "quant/kernels/cuda/w4a8/wide_plan.h"

namespace nibble::w4a8 {

// y[token][row] = x_scale[token] * (row_scale[row] * sum + LoRC) + bias[row]
struct WideOutput {
  const float* row_scale;     // [row tiles * 64]
  const __nv_bfloat16* bias;  // [row tiles * 64], or null
  const float* x_scale;       // [tokens]
  __nv_bfloat16* y;           // [tokens][rows]; this or y_f32
  float* y_f32;
  int64_t rows;
  int tokens;
  bool wide_stores;  // 16 bytes of y at a time: every segment and row begins at a multiple of 16
  SegmentTable segments;
  const uint4* lorc_a;     // see RowTile
  const __nv_bfloat16* t;  // [tokens, padded][ranks]: x B^T in units of the codes of x
  int ranks;
};

// Shared memory of the epilogue.
struct EpilogueShared {
  uint32_t staging;   // of the block
  uint32_t x_scales;  // of the warpgroup: f32 [token tile]
};

struct EpilogueTile {
  int row_tile;
  int row_tiles;  // that exist
  int first_token;
};

// Of one warpgroup and tile. Made before the tile's products, so that the scales' loads run under
// them.
template <class Config>
class Epilogue {
  static constexpr int kChunkSums = kWideChunk / 2;
  static constexpr int kScales = Config::kTokens / 128;    // of a thread
  static constexpr bool kShared = Config::kRowTiles == 1;  // both warpgroups have sums of one tile

 public:
  __device__ __forceinline__ Epilogue(const WideOutput& output, const EpilogueShared& shared,
                                      const EpilogueTile& tile, int warpgroup, int thread)
      : output_(output), shared_(shared), tile_(tile), warpgroup_(warpgroup), thread_(thread) {
    const bool exists = tile.row_tile < tile.row_tiles;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = tile.row_tile * kTileRows + RowOf(thread, half);
      row_scale_[half] = exists ? output.row_scale[row] : 0.f;
      bias_[half] = exists && output.bias != nullptr ? __bfloat162float(output.bias[row]) : 0.f;
    }
#pragma unroll
    for (int i = 0; i < kScales; ++i) {
      const int token = tile.first_token + i * 128 + thread;
      x_scale_[i] = token < output.tokens ? output.x_scale[token] : 0.f;
    }
  }

  __device__ __forceinline__ void Store(float (&sums)[Config::kSums]) {
#pragma unroll
    for (int i = 0; i < kScales; ++i) {
      SharedStore4(shared_.x_scales + (i * 128 + thread_) * 4, x_scale_[i]);
    }
    NamedBarrier(2 + warpgroup_, 128);
    if constexpr (kShared) {
      float half[Config::kSums / 2];
      AddOtherWarpgroup(sums, half);
      StoreChunks(half, warpgroup_ * (Config::kTokens / 2));
    } else {
      StoreChunks(sums, 0);
    }
  }

 private:
  // Each warpgroup finishes one half of the tokens: it gives away the other's.
  __device__ __forceinline__ void AddOtherWarpgroup(const float (&sums)[Config::kSums],
                                                    float (&half)[Config::kSums / 2]) const {
    constexpr int kHalf = Config::kSums / 2;
    constexpr int kRegion = kHalf * 4 * 128;
    const uint32_t mine = shared_.staging + warpgroup_ * kRegion + thread_ * 16;
    const uint32_t other = shared_.staging + (1 - warpgroup_) * kRegion + thread_ * 16;
    const bool low = warpgroup_ == 0;
#pragma unroll
    for (int i = 0; i < kHalf; i += 4) {
      SharedStore16(mine + i * 512,
                    low ? make_float4(sums[kHalf + i], sums[kHalf + i + 1], sums[kHalf + i + 2],
                                      sums[kHalf + i + 3])
                        : make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]));
    }
    NamedBarrier(1, 256);
#pragma unroll
    for (int i = 0; i < kHalf; i += 4) {
      const uint4 v = SharedLoad16(other + i * 512);
      half[i] = (low ? sums[i] : sums[kHalf + i]) + __uint_as_float(v.x);
      half[i + 1] = (low ? sums[i + 1] : sums[kHalf + i + 1]) + __uint_as_float(v.y);
      half[i + 2] = (low ? sums[i + 2] : sums[kHalf + i + 2]) + __uint_as_float(v.z);
      half[i + 3] = (low ? sums[i + 3] : sums[kHalf + i + 3]) + __uint_as_float(v.w);
    }
    NamedBarrier(1, 256);
  }

  template <int kCount>
  __device__ __forceinline__ void StoreChunks(float (&sums)[kCount], int first) {
    if (tile_.row_tile >= tile_.row_tiles) return;
    const RowTile rows = Locate(output_.segments, tile_.row_tile);
#pragma unroll
    for (int chunk = 0; chunk < kCount / kChunkSums; ++chunk) {
      const int token = first + chunk * kWideChunk;  // of the tile
      if (tile_.first_token + token >= output_.tokens) break;
      float v[kChunkSums];
#pragma unroll
      for (int i = 0; i < kChunkSums; ++i) {
        v[i] = sums[chunk * kChunkSums + i] * row_scale_[i % 4 / 2];
      }
      if (rows.rank > 0) AddLorc(rows, token, v);
      Scale(token, v);
      if (output_.y_f32 != nullptr) {
        StoreFloats(rows, token, v);
      } else {
        Stage(v);
        NamedBarrier(2 + warpgroup_, 128);
        StoreStaged(rows, token);
      }
      NamedBarrier(2 + warpgroup_, 128);
    }
  }

  // v[4j + i]: row RowOf(thread, i / 2), token 8j + 2c + i % 2 of the chunk, c = thread % 4.
  __device__ __forceinline__ int TokenOf(int i) const {
    return i / 4 * 8 + thread_ % 4 * 2 + i % 2;
  }

  __device__ __forceinline__ void AddLorc(const RowTile& rows, int token,
                                          float (&v)[kChunkSums]) const {
    const uint4* factor = output_.lorc_a + rows.lorc_a + thread_;
    const __nv_bfloat16* t = output_.t +
                             int64_t{tile_.first_token + token + thread_ % 32 / 4} * output_.ranks +
                             rows.first_rank + thread_ % 4 * 2;
    for (int rank = 0; rank < rows.rank; rank += kRankBand) {
      const uint4 a = __ldg(factor + rank / kRankBand * 128);
#pragma unroll
      for (int j = 0; j < kWideChunk / 8; ++j) {
        const __nv_bfloat16* at = t + int64_t{8 * j} * output_.ranks + rank;
        float d[4] = {v[4 * j], v[4 * j + 1], v[4 * j + 2], v[4 * j + 3]};
        MmaBf16(d, a, __ldg(reinterpret_cast<const uint32_t*>(at)),
                __ldg(reinterpret_cast<const uint32_t*>(at + 8)));
#pragma unroll
        for (int i = 0; i < 4; ++i) v[4 * j + i] = d[i];
      }
    }
  }

  __device__ __forceinline__ void Scale(int token, float (&v)[kChunkSums]) const {
    const uint32_t scales = shared_.x_scales + (token + thread_ % 4 * 2) * 4;
#pragma unroll
    for (int j = 0; j < kWideChunk / 8; ++j) {
      const uint2 scale = SharedLoad8(scales + j * 32);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        v[4 * j + i] =
            v[4 * j + i] * __uint_as_float(i % 2 == 0 ? scale.x : scale.y) + bias_[i / 2];
      }
    }
  }

  __device__ __forceinline__ void StoreFloats(const RowTile& rows, int token,
                                              const float (&v)[kChunkSums]) const {
#pragma unroll
    for (int i = 0; i < kChunkSums; ++i) {
      const int row = RowOf(thread_, i % 4 / 2);
      const int64_t y_token = tile_.first_token + token + TokenOf(i);
      if (row < rows.rows && y_token < output_.tokens) {
        output_.y_f32[y_token * output_.rows + rows.first_col + row] = v[i];
      }
    }
  }

  __device__ __forceinline__ uint32_t StagingAt(int token, int piece) const {
    return shared_.staging + StagingBytes(Config::kRowTiles, Config::kTokens) / 2 * warpgroup_ +
           token * 128 + ((piece ^ (token & 7)) * 16);
  }

  // The chunk as bf16 [token][64 rows]: 8 pieces of 8 rows a token.
  __device__ __forceinline__ void Stage(const float (&v)[kChunkSums]) const {
    const int lane = thread_ % 32;
    const int piece = thread_ / 32 * 2 + lane / 8 % 2;
#pragma unroll
    for (int j = 0; j < kWideChunk / 8; j += 2) {
      uint4 blocks;  // (tokens 8j.., rows g), (8j.., g + 8), (8j + 8.., g), (8j + 8.., g + 8)
      blocks.x = PackBf16(v[4 * j], v[4 * j + 1]);
      blocks.y = PackBf16(v[4 * j + 2], v[4 * j + 3]);
      blocks.z = PackBf16(v[4 * j + 4], v[4 * j + 5]);
      blocks.w = PackBf16(v[4 * j + 6], v[4 * j + 7]);
      SharedStoreTransposed(StagingAt(8 * (j + lane / 16) + lane % 8, piece), blocks);
    }
  }

  // A thread stores the same piece of four tokens.
  __device__ __forceinline__ void StoreStaged(const RowTile& rows, int token) const {
    constexpr int kTokensAtOnce = 16;
    const int piece = thread_ % 8;
    const int left = rows.rows - piece * 8;
    const int first = thread_ / 8;
    const int64_t tokens = output_.tokens - tile_.first_token - token;
    __nv_bfloat16* y =
        output_.y + int64_t{tile_.first_token + token} * output_.rows + rows.first_col + piece * 8;
    if (output_.wide_stores && left >= 8) {
#pragma unroll
      for (int i = first; i < kWideChunk; i += kTokensAtOnce) {
        const uint4 eight = SharedLoad16(StagingAt(i, piece));
        if (i < tokens) *reinterpret_cast<uint4*>(y + i * output_.rows) = eight;
      }
    } else if (left > 0) {
#pragma unroll 1
      for (int i = first; i < kWideChunk && i < tokens; i += kTokensAtOnce) {
        StoreSome(y + i * output_.rows, SharedLoad16(StagingAt(i, piece)), left);
      }
    }
  }

  const WideOutput& output_;
  const EpilogueShared& shared_;
  EpilogueTile tile_;
  int warpgroup_;
  int thread_;
  float row_scale_[2];
  float bias_[2];
  float x_scale_[kScales];
};

}  // namespace nibble::w4a8
