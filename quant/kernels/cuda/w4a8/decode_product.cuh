// One slice of a row tile times one slice of x, by one warpgroup.
#pragma once

#include <cstdint>

#include "quant/kernels/cuda/w4a8/dequant.cuh"
#include "quant/kernels/cuda/w4a8/layout.h"
#include "quant/kernels/cuda/w4a8/ptx.cuh"
#include "quant/kernels/cuda/w4a8/wgmma.cuh"

namespace nibble::w4a8 {

inline constexpr int kSteps = kSliceCols / kStepCols;

// A slice's A fragments: a[step][4].
using Fragments = uint32_t[kSteps][4];

// The sums of one thread: NIBBLE_D of wgmma.cuh, row halves alternating in twos.
template <int kTokens>
using Sums = float[kTokens / 2];

// Keeps accesses to sums on this side of a wait, which the compiler knows nothing of.
template <int kCount>
__device__ __forceinline__ void Settle(float (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

// The group, of a slice's kGroups, of k-step `step`, columns 16 * upper .. + 15.
template <int kGroups>
__device__ constexpr int GroupOf(int step, int upper) {
  return (2 * step + upper) * kGroups / 8;
}

// The pair of rows of a thread of the warpgroup.
__device__ __forceinline__ int ThreadPair(int thread) { return PairOf(RowOf(thread, 0)); }

__device__ __forceinline__ uint2 LoadTable(uint32_t tables, uint32_t k) {
  return SharedLoad8(tables + k * sizeof(FoldTable));
}

// 4-bit codes to A fragments. kFold: each group's exponent folded in; else the codes' own values,
// by the table of k = bias.
template <bool kFold, int kGroups>
__device__ __forceinline__ void LoadNibbles(uint32_t codes, uint32_t tables, int bias, int thread,
                                            Fragments& a) {
  constexpr int kTables = kFold ? kGroups : 1;
  uint2 table[kTables][2];
#pragma unroll
  for (int g = 0; g < kTables; ++g) {
    const uint32_t pair =
        kFold ? SharedLoad1(codes + CodeBytes(Kind::kFolded) + g * kTilePairs + ThreadPair(thread))
              : bias * 0x11u;
    table[g][0] = LoadTable(tables, pair & 0xf);
    table[g][1] = LoadTable(tables, pair >> 4);
  }
#pragma unroll
  for (int step = 0; step < kSteps; step += 2) {
    const uint4 words = SharedLoad16(codes + step / 2 * 2048 + thread * 16);
    const auto expand = [&](uint32_t word, int s, int half) {
      ExpandWord(word, table[GroupOf<kTables>(s, 0)][half], table[GroupOf<kTables>(s, 1)][half],
                 a[s][half], a[s][2 + half]);
    };
    expand(words.x, step, 0);
    expand(words.y, step, 1);
    expand(words.z, step + 1, 0);
    expand(words.w, step + 1, 1);
  }
}

// 8-bit codes of a tile of `bands` bands of 16 rows; warps beyond them get zeros.
__device__ __forceinline__ void LoadBytes(uint32_t codes, int bands, int thread, Fragments& a) {
  const int warp = thread / 32;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    uint4 v = {};
    if (warp < bands) {
      v = SharedLoad16(codes + ((step * bands + warp) * 32 + thread % 32) * 16);
    }
    a[step][0] = v.x;
    a[step][1] = v.y;
    a[step][2] = v.z;
    a[step][3] = v.w;
  }
}

// d = A x^T over k-steps [first, first + count).
template <int kTokens>
__device__ __forceinline__ void Multiply(const uint32_t (*a)[4], int first, int count, uint32_t x,
                                         Sums<kTokens>& d) {
  const uint64_t descriptor = SwizzledDescriptor(x);
  Settle(d);
  WgmmaFence();
#pragma unroll
  for (int step = 0; step < count; ++step) {
    Wgmma(d, a[step], descriptor + 2 * (first + step), step > 0 ? 1 : 0);
  }
  WgmmaCommit();
  WgmmaWait<0>();
  Settle(d);
}

// sums += A x^T.
template <int kTokens>
__device__ __forceinline__ void AddProduct(const Fragments& a, uint32_t x, Sums<kTokens>& sums) {
  Sums<kTokens> d = {};
  Multiply<kTokens>(a, 0, kSteps, x, d);
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) sums[i] += d[i];
}

// sums += scale of the group and row * A x^T, group by group; `scales` are those of the slice.
template <int kGroups, int kTokens>
__device__ __forceinline__ void AddScaledProduct(const Fragments& a, uint32_t scales, uint32_t x,
                                                 int thread, Sums<kTokens>& sums) {
  constexpr int kGroupSteps = kGroups < kSteps ? kSteps / kGroups : 1;
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    Sums<kTokens> d = {};
    if constexpr (kGroups <= kSteps) {
      Multiply<kTokens>(a + g * kGroupSteps, g * kGroupSteps, kGroupSteps, x, d);
    } else {  // groups of 16: the other half of the k-step as zeros
      const uint32_t* whole = a[g / 2];
      const uint32_t half[1][4] = {{g % 2 == 0 ? whole[0] : 0, g % 2 == 0 ? whole[1] : 0,
                                    g % 2 == 1 ? whole[2] : 0, g % 2 == 1 ? whole[3] : 0}};
      Multiply<kTokens>(half, g / 2, 1, x, d);
    }
    const float scale[2] = {
        __uint_as_float(SharedLoad4(scales + PlaceOfScale(RowOf(thread, 0), g))),
        __uint_as_float(SharedLoad4(scales + PlaceOfScale(RowOf(thread, 1), g)))};
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) sums[i] = fmaf(scale[i / 2 % 2], d[i], sums[i]);
  }
}

// sums += W x^T for one slice of a row tile.
template <Kind kKind, int kGroups, int kTokens>
__device__ __forceinline__ void AddSlice(uint32_t codes, uint32_t x, uint32_t tables, int bias,
                                         int thread, Sums<kTokens>& sums) {
  Fragments a;
  if constexpr (kKind == Kind::kScaled8) {
    LoadBytes(codes, kTileRows / kBandRows, thread, a);
  } else {
    LoadNibbles<kKind == Kind::kFolded, kGroups>(codes, tables, bias, thread, a);
  }
  if constexpr (kKind == Kind::kFolded) {
    AddProduct<kTokens>(a, x, sums);
  } else {
    AddScaledProduct<kGroups, kTokens>(a, codes + CodeBytes(kKind), x, thread, sums);
  }
}

}  // namespace nibble::w4a8
