// Sums to bf16 in global memory.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace nibble::w4a8 {

__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

// The first `count` of eight, at any address.
__device__ __forceinline__ void StoreSome(__nv_bfloat16* to, const uint4& eight, int count) {
  const uint32_t pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const auto bits = static_cast<uint16_t>(pairs[i / 2] >> (i % 2 * 16));
    if (i < count) to[i] = __ushort_as_bfloat16(bits);
  }
}

}  // namespace nibble::w4a8
