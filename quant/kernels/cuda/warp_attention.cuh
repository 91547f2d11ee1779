// One warp's share of a chunk: queries in registers, a softmax over the pages that it adds.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "quant/kernels/cuda/decode_pages.cuh"
#include "quant/kernels/cuda/decode_work.cuh"
#include "quant/kernels/cuda/mma.cuh"

namespace nibble {
namespace {

constexpr float kNone = -1e30f;  // below every score

template <class Number>
__device__ __forceinline__ uint32_t Pack(float low, float high) {
  if constexpr (std::is_same_v<Number, __half>) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
}

// Attention of one warp over some pages: the running softmax of flash attention.
template <class Page, int kDim, int kColumnTiles>
class WarpAttention {
 public:
  using Number = typename Page::Number;
  static constexpr int kSteps = kDim / 16;

  // No keys seen.
  __device__ void Clear() {
#pragma unroll
    for (int t = 0; t < kColumnTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        largest_[t][i] = kNone;
        weight_[t][i] = 0;
      }
#pragma unroll
      for (auto& sums : out_[t]) sums[0] = sums[1] = sums[2] = sums[3] = 0;
    }
  }

  // After the queries are there.
  __device__ void LoadQueries(const DecodeShape& shape, const Work& work, int kv_head) {
    const int heads = shape.group * shape.kv_heads;
#pragma unroll
    for (int t = 0; t < kColumnTiles; ++t) {
      const int row = t * 8 + lane_ / 4;
      const int of_sequence = work.tile * shape.tile_rows + row;
      const bool there = work.HasRow(shape, row);
      const int64_t token = work.first_token + (there ? of_sequence / shape.group : 0);
      const int head = kv_head * shape.group + of_sequence % shape.group;
      const __nv_bfloat16* q = shape.q + (token * heads + (there ? head : 0)) * kDim;
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float2 pair = __bfloat1622float2(
              *reinterpret_cast<const __nv_bfloat162*>(q + Page::QueryDim(s, half)));
          q_[t][s][half] = there ? Pack<Number>(pair.x, pair.y) : 0;
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) seen_[t][i] = work.SeenBy(shape, t * 8 + lane_ % 4 * 2 + i);
    }
  }

  // `first_key`: of the page, in the sequence.
  __device__ void AddPage(uint32_t k, uint32_t v, int first_key, float score_scale) {
    const typename Page::Keys page_keys(k);
    float scores[kColumnTiles][4] = {};
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      uint32_t keys[4];
      page_keys.Get(s, keys);
#pragma unroll
      for (int t = 0; t < kColumnTiles; ++t) MultiplyAdd<Number>(scores[t], keys, q_[t][s]);
    }
    uint32_t p[kColumnTiles][2];
#pragma unroll
    for (int t = 0; t < kColumnTiles; ++t) Soften(scores[t], t, first_key, score_scale, p[t]);
    const typename Page::Values page_values(v);
#pragma unroll
    for (int d = 0; d < kSteps; ++d) {
      uint32_t values[4];
      page_values.Get(d, values);
#pragma unroll
      for (int t = 0; t < kColumnTiles; ++t) MultiplyAdd<Number>(out_[t][d], values, p[t]);
    }
  }

  // Leaves, for each of the tile's first `rows` rows, its sums, its largest score and its weight at
  // `merge`: [row][kDim + 2] f32.
  __device__ void Store(float* merge, int rows) {
#pragma unroll
    for (int t = 0; t < kColumnTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float weight = weight_[t][i];
        for (int apart = 4; apart < 32; apart *= 2) {
          weight += __shfl_xor_sync(0xffffffffu, weight, apart);
        }
        const int at = t * 8 + lane_ % 4 * 2 + i;
        if (at >= rows) continue;
        float* row = merge + at * (kDim + 2);
#pragma unroll
        for (int d = 0; d < kSteps; ++d) {
          row[Page::SumDim(d, 0)] = out_[t][d][i];
          row[Page::SumDim(d, 1)] = out_[t][d][2 + i];
        }
        if (lane_ < 4) {
          row[kDim] = largest_[t][i];
          row[kDim + 1] = weight;
        }
      }
    }
  }

 private:
  // Scores of 16 keys and 8 rows to weights, packed as the next product's B; what was summed before
  // is scaled to the new largest score.
  __device__ void Soften(float (&scores)[4], int t, int first_key, float score_scale,
                         uint32_t (&p)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float largest = largest_[t][i];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& score = scores[2 * half + i];
        score *= score_scale;
        if (first_key + half * 8 + lane_ / 4 >= seen_[t][i]) score = 2 * kNone;
        largest = fmaxf(largest, score);
      }
      for (int apart = 4; apart < 32; apart *= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, apart));
      }
      const float shrink = exp2f(largest_[t][i] - largest);
      largest_[t][i] = largest;
      weight_[t][i] *= shrink;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& score = scores[2 * half + i];
        score = exp2f(score - largest);
        weight_[t][i] += score;
      }
#pragma unroll
      for (int d = 0; d < kSteps; ++d) {
        out_[t][d][i] *= shrink;
        out_[t][d][2 + i] *= shrink;
      }
    }
    p[0] = Transpose(Pack<Number>(scores[0], scores[1]));
    p[1] = Transpose(Pack<Number>(scores[2], scores[3]));
  }

  const int lane_ = Lane();
  uint32_t q_[kColumnTiles][kSteps][2];
  int seen_[kColumnTiles][2];
  float largest_[kColumnTiles][2];
  float weight_[kColumnTiles][2];  // of this lane's keys
  float out_[kColumnTiles][kSteps][4];
};

}  // namespace
}  // namespace nibble
