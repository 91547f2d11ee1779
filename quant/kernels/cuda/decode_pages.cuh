// A page of keys or values of one head in shared memory, and as mma.cuh's A: 16 rows of kDim
// numbers. Within a product the order of what is summed is free, and so is that of the sums' rows:
// each kind of page has the order in which its lanes read it without conflicts, and tells it.
//
// It tells too how many blocks of one column tile and one head share a multiprocessor, and the
// shared memory that each warp then has; blocks of a head a warp keep more, and are fewer.
//
//   keys     A[key][QueryDim]: the products' k-steps are steps of 16 dimensions
//   values   A[SumDim][key]: products of 16 dimensions each
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "quant/kernels/cuda/mma.cuh"

namespace nibble {

inline constexpr int kPageKeys = 16;

__device__ __forceinline__ int Lane() { return static_cast<int>(threadIdx.x) % 32; }

__device__ __forceinline__ uint4 SharedLoad16(uint32_t at) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(at)
               : "memory");
  return v;
}
__device__ __forceinline__ uint2 SharedLoad8(uint32_t at) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at) : "memory");
  return v;
}

// bf16: piece p (16 bytes) of row r at p ^ (r % 8), so that a column of eight rows is read at once.
template <int kDim>
class WidePage {
 public:
  using Number = __nv_bfloat16;  // what is multiplied
  static constexpr int kBlocks = 3;
  static constexpr int kWarpBytes = 16 * 1024;
  static constexpr int kPieces = kDim * 2 / 16;
  static constexpr int kBytes = kPageKeys * kPieces * 16;
  static_assert(kPieces >= 8);

  static __device__ uint32_t KeyPlace(int row, int piece) {
    return (row * kPieces + (piece ^ (row & 7))) * 16;
  }
  static __device__ uint32_t ValuePlace(int row, int piece) { return KeyPlace(row, piece); }
  // The first of this lane's two neighbouring dimensions in half `half` of k-step `step`.
  static __device__ int QueryDim(int step, int half) {
    return step * 16 + half * 8 + Lane() % 4 * 2;
  }
  // That of this lane's row g + 8 * half of product `product`.
  static __device__ int SumDim(int product, int half) {
    return product * 16 + half * 8 + Lane() / 4;
  }

  class Keys {
   public:
    __device__ explicit Keys(uint32_t page) : page_(page) {}
    __device__ void Get(int step, uint32_t (&a)[4]) const {
      LoadMatrices(page_ + KeyPlace(Lane() % 16, 2 * step + Lane() / 16), a);
    }

   private:
    const uint32_t page_;
  };
  class Values {
   public:
    __device__ explicit Values(uint32_t page) : page_(page) {}
    __device__ void Get(int product, uint32_t (&a)[4]) const {
      const int key = Lane() / 16 * 8 + Lane() % 8;
      LoadMatricesTransposed(page_ + ValuePlace(key, 2 * product + Lane() / 8 % 2), a);
    }

   private:
    const uint32_t page_;
  };
};

// Two E4M3 bytes as two f16, exactly.
__device__ __forceinline__ uint32_t WidenPair(uint32_t bytes) {
  const __half2_raw pair =
      __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(bytes), __NV_E4M3);
  return pair.x | static_cast<uint32_t>(pair.y) << 16;
}

// E4M3, widened to f16 in registers. A lane has 16 neighbouring bytes of a key's row for four
// k-steps, and all of its bytes of a value's row at once.
template <int kDim>
class NarrowPage {
 public:
  using Number = __half;
  static constexpr int kBlocks = 4;
  static constexpr int kWarpBytes = 12 * 1024;
  static constexpr int kPieces = kDim / 16;
  static constexpr int kBytes = kPageKeys * kPieces * 16;
  static constexpr int kLaneDims = kDim / 8;  // of a value's row
  static_assert(kPieces == 4 || kPieces == 8);

  // Eight lanes read two rows of keys, or four of values.
  static __device__ uint32_t KeyPlace(int row, int piece) {
    return (row * kPieces + (kPieces == 8 ? piece ^ (row & 1) * 4 : piece)) * 16;
  }
  static __device__ uint32_t ValuePlace(int row, int piece) {
    return (row * kPieces + (piece ^ (row / 2 & 3) * (kPieces / 4))) * 16;
  }
  static __device__ int QueryDim(int step, int half) {
    return step / 4 * 64 + Lane() % 4 * 16 + step % 4 * 4 + half * 2;
  }
  static __device__ int SumDim(int product, int half) {
    return Lane() / 4 * kLaneDims + product * 2 + half;
  }

  class Keys {
   public:
    __device__ explicit Keys(uint32_t page) {
#pragma unroll
      for (int i = 0; i < kDim / 64; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint4 v = SharedLoad16(page + KeyPlace(Lane() / 4 + half * 8, i * 4 + Lane() % 4));
          words_[i * 4][half] = v.x;
          words_[i * 4 + 1][half] = v.y;
          words_[i * 4 + 2][half] = v.z;
          words_[i * 4 + 3][half] = v.w;
        }
      }
    }
    __device__ void Get(int step, uint32_t (&a)[4]) const {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        a[half] = WidenPair(words_[step][half] & 0xffff);
        a[2 + half] = WidenPair(words_[step][half] >> 16);
      }
    }

   private:
    uint32_t words_[kDim / 16][2];  // of k-step and row half
  };
  class Values {
   public:
    __device__ explicit Values(uint32_t page) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = Lane() % 4 * 2 + i % 2 + i / 2 * 8;
        if constexpr (kLaneDims == 16) {
          const uint4 v = SharedLoad16(page + ValuePlace(key, Lane() / 4));
          words_[i][0] = v.x;
          words_[i][1] = v.y;
          words_[i][2] = v.z;
          words_[i][3] = v.w;
        } else {
          const uint2 v = SharedLoad8(page + ValuePlace(key, Lane() / 8) + Lane() / 4 % 2 * 8);
          words_[i][0] = v.x;
          words_[i][1] = v.y;
        }
      }
    }
    __device__ void Get(int product, uint32_t (&a)[4]) const {
#pragma unroll
      for (int keys = 0; keys < 2; ++keys) {
        uint32_t pair[2];  // of neighbouring keys: two dimensions each
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          pair[i] = WidenPair(words_[2 * keys + i][product / 2] >> product % 2 * 16 & 0xffff);
        }
        a[2 * keys] = __byte_perm(pair[0], pair[1], 0x5410);
        a[2 * keys + 1] = __byte_perm(pair[0], pair[1], 0x7632);
      }
    }

   private:
    uint32_t words_[4][kLaneDims / 4];  // of keys 2c, 2c + 1, 2c + 8, 2c + 9
  };
};

}  // namespace nibble
