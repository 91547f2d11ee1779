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

// A pair of row halves' fold tables for each group in two k-steps.
template <int kGroups>
struct PairTables {
  static constexpr int kCount = kGroups > kSteps / 2 ? kGroups / (kSteps / 2) : 1;
  uint2 table[kCount][2];

  // Of k-steps [first, first + 2) of a slice.
  __device__ __forceinline__ void Load(uint32_t codes, uint32_t tables, int thread, int first) {
#pragma unroll
    for (int g = 0; g < kCount; ++g) {
      const uint32_t pair =
          SharedLoad1(codes + CodeBytes(Kind::kFolded) +
                      (GroupOf<kGroups>(first, 0) + g) * kTilePairs + ThreadPair(thread));
      Set(g, tables, pair & 0xf, pair >> 4);
    }
  }
  __device__ __forceinline__ void Set(int g, uint32_t tables, uint32_t k, uint32_t upper_k) {
    table[g][0] = LoadTable(tables, k);
    table[g][1] = LoadTable(tables, upper_k);
  }
};

// A thread's 4-bit codes of k-steps [first, first + 2).
__device__ __forceinline__ uint4 LoadNibblePair(uint32_t codes, int thread, int first) {
  return SharedLoad16(codes + first / 2 * 2048 + thread * 16);
}

// These to A fragments.
template <int kGroups>
__device__ __forceinline__ void ExpandNibblePair(const uint4& words,
                                                 const PairTables<kGroups>& tables,
                                                 uint32_t (*a)[4]) {
  const auto expand = [&](uint32_t word, int s, int half) {
    const auto table = [&](int upper) { return tables.table[GroupOf<kGroups>(s, upper)][half]; };
    ExpandWord(word, table(0), table(1), a[s][half], a[s][2 + half]);
  };
  expand(words.x, 0, 0);
  expand(words.y, 0, 1);
  expand(words.z, 1, 0);
  expand(words.w, 1, 1);
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

// sums += W x^T for one slice of a row tile, weights of 4 or 8 bits under scales of their own.
template <Kind kKind, int kGroups, int kTokens>
__device__ __forceinline__ void AddScaledSlice(uint32_t codes, uint32_t x, uint32_t tables,
                                               int bias, int thread, Sums<kTokens>& sums) {
  Fragments a;
  if constexpr (kKind == Kind::kScaled8) {
    LoadBytes(codes, kTileRows / kBandRows, thread, a);
  } else {
    PairTables<1> plain;  // the codes' own values
    plain.Set(0, tables, bias, bias);
#pragma unroll
    for (int step = 0; step < kSteps; step += 2) {
      ExpandNibblePair<1>(LoadNibblePair(codes, thread, step), plain, a + step);
    }
  }
  AddScaledProduct<kGroups, kTokens>(a, codes + CodeBytes(kKind), x, thread, sums);
}

// Sums of W x^T over slices of folded weights: while the tensor cores multiply one half of a slice,
// the next half is expanded.
template <int kGroups, int kTokens>
class FoldedSums {
 public:
  __device__ FoldedSums(uint32_t tables, int thread) : tables_(tables), thread_(thread) {}

  // Reads `codes` now and x, of that descriptor, until the next Add or Finish has returned.
  __device__ __forceinline__ void Add(uint32_t codes, uint64_t x) {
    const uint4 first = LoadNibblePair(codes, thread_, 0);
    uint4 second;
    if (kRoom) second = LoadNibblePair(codes, thread_, kHalf);
    fold_.Load(codes, tables_, thread_, 0);
    ExpandNibblePair<kGroups>(first, fold_, a_);
    Finish();
    Start(0, x);
    if (!kRoom) second = LoadNibblePair(codes, thread_, kHalf);
    if (kGroups > 1) fold_.Load(codes, tables_, thread_, kHalf);
    ExpandNibblePair<kGroups>(second, fold_, a_ + kHalf);
    Start(kHalf, x);
  }

  __device__ __forceinline__ void Finish() {
    WgmmaWait<0>();
    Settle(products_);
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) sums_[i] += products_[i];
  }

  __device__ __forceinline__ Sums<kTokens>& sums() { return sums_; }

 private:
  static constexpr int kHalf = kSteps / 2;
  static_assert(kHalf == 2);
  static constexpr bool kRoom = kTokens < 64;  // in registers, for codes ahead of their turn

  __device__ __forceinline__ void Start(int first, uint64_t descriptor) {
    Settle(products_);
    WgmmaFence();
#pragma unroll
    for (int step = first; step < first + kHalf; ++step) {
      Wgmma(products_, a_[step], descriptor + 2 * step, step > 0 ? 1 : 0);
    }
    WgmmaCommit();
  }

  const uint32_t tables_;
  const int thread_;
  PairTables<kGroups> fold_;
  Fragments a_;
  Sums<kTokens> products_ = {};  // of the slice under way
  Sums<kTokens> sums_ = {};
};

}  // namespace nibble::w4a8
