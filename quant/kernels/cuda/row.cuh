// One block works on one token's row of bf16, eight values ("an octet", 16 bytes) a thread at a
// time. Private to the kernels.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "absl/status/status.h"
#include "quant/base/strings.h"

namespace nibble {

inline constexpr int kOctet = 8;
inline constexpr int kMaxRowThreads = 1024;
inline constexpr float kE4M3Max = 448.f;

struct Octet {
  float x[kOctet];
};

__device__ inline Octet Unpack(uint4 raw) {
  Octet octet;
  const auto* pairs = reinterpret_cast<const __nv_bfloat162*>(&raw);
#pragma unroll
  for (int i = 0; i < kOctet / 2; ++i) {
    const float2 pair = __bfloat1622float2(pairs[i]);
    octet.x[2 * i] = pair.x;
    octet.x[2 * i + 1] = pair.y;
  }
  return octet;
}

// Rounds to nearest even.
__device__ inline uint4 Pack(const Octet& octet) {
  uint4 raw;
  auto* pairs = reinterpret_cast<__nv_bfloat162*>(&raw);
#pragma unroll
  for (int i = 0; i < kOctet / 2; ++i) {
    pairs[i] = __floats2bfloat162_rn(octet.x[2 * i], octet.x[2 * i + 1]);
  }
  return raw;
}

// e4m3(x * factor), saturating, rounded to nearest even; the first value in the lowest byte.
__device__ inline uint2 PackE4M3(const Octet& octet, float factor) {
  uint2 codes;
  auto* pairs = reinterpret_cast<__nv_fp8x2_storage_t*>(&codes);
#pragma unroll
  for (int i = 0; i < kOctet / 2; ++i) {
    pairs[i] =
        __nv_cvt_float2_to_fp8x2(make_float2(octet.x[2 * i] * factor, octet.x[2 * i + 1] * factor),
                                 __NV_SATFINITE, __NV_E4M3);
  }
  return codes;
}

// |x|, with infinity standing for a NaN, so that a maximum shows it.
__device__ inline float Magnitude(float x) { return isnan(x) ? INFINITY : fabsf(x); }

__device__ inline float LargestMagnitude(const Octet& octet) {
  float largest = 0;
#pragma unroll
  for (const float x : octet.x) largest = fmaxf(largest, Magnitude(x));
  return largest;
}

struct SumAndMax {
  float sum = 0;
  float max = 0;
};

// Over all threads of the block (whole warps), the same in every one, in a fixed order. May be
// called again at once.
__device__ inline SumAndMax BlockReduce(SumAndMax mine) {
  __shared__ SumAndMax warps[kMaxRowThreads / 32];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    mine.sum += __shfl_xor_sync(0xffffffffu, mine.sum, step);
    mine.max = fmaxf(mine.max, __shfl_xor_sync(0xffffffffu, mine.max, step));
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = mine;
  __syncthreads();
  SumAndMax all = warps[0];
  for (int warp = 1; warp < blockDim.x / 32; ++warp) {
    all.sum += warps[warp].sum;
    all.max = fmaxf(all.max, warps[warp].max);
  }
  return all;
}

// How a row's E4M3 codes come from its largest magnitude (DESIGN 2): code = e4m3(x * factor), scale
// = amax / 448, with magnitudes below 1e-30 taken as 1e-30, as the format library does. A row of
// zeros gets scale 0, one with a NaN or an infinity scale NaN and codes 0.
struct E4M3Row {
  float factor;
  float scale;
  __device__ explicit E4M3Row(float amax) {
    const float range = fmaxf(amax, 1e-30f);
    factor = isfinite(amax) ? kE4M3Max / range : NAN;
    scale = isfinite(amax) ? (amax > 0 ? range / kE4M3Max : 0.f) : NAN;
  }
  __device__ uint2 Codes(const Octet& octet) const {
    return isnan(factor) ? uint2{} : PackE4M3(octet, factor);
  }
};

// Threads and octets a thread of a row kernel. Octet i of the row belongs to thread i % threads.
struct RowShape {
  int octets;      // of the row
  int threads;     // a multiple of 32
  int per_thread;  // 1, 2 or 4
};

inline constexpr int64_t kMaxRowWidth = int64_t{kMaxRowThreads} * 4 * kOctet;

// INVALID_ARGUMENT unless there are 0..2^31-1 rows of 8..32768 values, a multiple of 8.
inline absl::Status CheckRows(std::string_view kernel, int64_t tokens, int64_t width) {
  if (width > 0 && width % kOctet == 0 && width <= kMaxRowWidth && tokens >= 0 &&
      tokens <= INT32_MAX) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      StrCat(kernel, ": found ", tokens, " rows of ", width,
             ", expected rows whose width is a positive multiple of 8 up to ", kMaxRowWidth));
}

// As many threads as there are octets, up to the most of a block.
inline RowShape ShapeOfRow(int64_t width) {
  const int octets = static_cast<int>(width / kOctet);
  int per_thread = 1;
  while (octets > kMaxRowThreads * per_thread) per_thread *= 2;
  const int threads = (octets + per_thread - 1) / per_thread;
  return {octets, (threads + 31) / 32 * 32, per_thread};
}

// Calls function(std::integral_constant<int, per_thread>{}).
template <class Function>
absl::Status ForOctetsPerThread(const RowShape& shape, Function&& function) {
  switch (shape.per_thread) {
    case 1:
      return function(std::integral_constant<int, 1>{});
    case 2:
      return function(std::integral_constant<int, 2>{});
    default:
      return function(std::integral_constant<int, 4>{});
  }
}

}  // namespace nibble
