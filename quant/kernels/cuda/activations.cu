#include <cuda_fp8.h>

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "quant/kernels/cuda/activations.h"

namespace nibble {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr float kE4M3Max = 448.f;

// Eight bf16 in one 16-byte load.
struct Octet {
  uint4 raw;
  __device__ float2 pair(int i) const {
    return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162*>(&raw)[i]);
  }
};

// The largest magnitude of the row's share of every thread, with infinity standing for a row that
// holds a NaN or an infinity.
__device__ float BlockMax(float mine) {
  __shared__ float warp_max[kWarps];
  for (int step = 16; step > 0; step /= 2) {
    mine = fmaxf(mine, __shfl_xor_sync(0xffffffffu, mine, step));
  }
  if (threadIdx.x % 32 == 0) warp_max[threadIdx.x / 32] = mine;
  __syncthreads();
  float all = warp_max[0];
  for (int warp = 1; warp < kWarps; ++warp) all = fmaxf(all, warp_max[warp]);
  return all;
}

__device__ float Magnitude(float x) { return isnan(x) ? INFINITY : fabsf(x); }

__device__ uint8_t Encode(float x) { return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3); }

// One block a row, which stays in the first-level cache between its two passes.
__global__ void __launch_bounds__(kThreads)
    QuantizeRow(const uint4* __restrict__ x, int octets, uint2* __restrict__ codes,
                float* __restrict__ scales) {
  const uint4* row = x + int64_t{blockIdx.x} * octets;
  float mine = 0;
  for (int i = threadIdx.x; i < octets; i += kThreads) {
    const Octet octet{row[i]};
    for (int p = 0; p < 4; ++p) {
      const float2 pair = octet.pair(p);
      mine = fmaxf(mine, fmaxf(Magnitude(pair.x), Magnitude(pair.y)));
    }
  }
  const float amax = BlockMax(mine);
  const bool usable = amax > 0 && isfinite(amax);
  const float factor = usable ? kE4M3Max / amax : 0.f;
  if (threadIdx.x == 0) scales[blockIdx.x] = isfinite(amax) ? amax / kE4M3Max : NAN;
  for (int i = threadIdx.x; i < octets; i += kThreads) {
    const Octet octet{row[i]};
    uint2 packed{};
    uint8_t* out = reinterpret_cast<uint8_t*>(&packed);
    for (int p = 0; p < 4 && usable; ++p) {
      const float2 pair = octet.pair(p);
      out[2 * p] = Encode(pair.x * factor);
      out[2 * p + 1] = Encode(pair.y * factor);
    }
    codes[int64_t{blockIdx.x} * octets + i] = packed;
  }
}

bool Aligned(const void* pointer, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

}  // namespace

absl::Status QuantizeActivationsE4M3(const __nv_bfloat16* x, int64_t tokens, int64_t width,
                                     uint8_t* codes, float* scales, cudaStream_t stream) {
  if (width <= 0 || width % 8 != 0 || width > INT32_MAX || tokens < 0 || tokens > INT32_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat("activations: found ", tokens, " rows of ", width,
                     ", expected rows whose width is a positive multiple of 8"));
  }
  if (!Aligned(x, 16) || !Aligned(codes, 8)) {
    return absl::InvalidArgumentError(
        "activations: found pointers off their alignment, expected 16 bytes for x, 8 for codes");
  }
  if (tokens == 0) return absl::OkStatus();
  QuantizeRow<<<static_cast<unsigned>(tokens), kThreads, 0, stream>>>(
      reinterpret_cast<const uint4*>(x), static_cast<int>(width / 8),
      reinterpret_cast<uint2*>(codes), scales);
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("QuantizeActivationsE4M3 can't be launched: ", cudaGetErrorString(error)));
}

}  // namespace nibble
