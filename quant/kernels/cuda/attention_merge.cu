#include <type_traits>

#include "quant/base/status_macros.h"
#include "quant/kernels/cuda/attention_merge.h"
#include "quant/kernels/cuda/overlap.cuh"
#include "quant/kernels/cuda/row.cuh"

namespace nibble {
namespace {

// Columns of a thread's piece; every head_dim is a multiple of it.
constexpr int kQuad = 4;
constexpr int64_t kMaxWidth = int64_t{kMaxRowThreads} * 4 * kQuad;

// One quad of the token's row: sum of values * 2^log_sum over its partials, in order, divided by
// the sum of 2^log_sum.
__device__ float4 MergeQuad(const PartialResults& partials, int begin, int end, int quad) {
  const int quads = partials.head_dim / kQuad;  // of a head
  const int head = quad / quads;
  const int column = quad % quads * kQuad;
  float largest = -INFINITY;
  for (int i = begin; i < end; ++i) {
    largest = fmaxf(largest, partials.log_sums[int64_t{i} * partials.heads + head]);
  }
  float4 sum{};
  float weights = 0;
#pragma unroll 4
  for (int i = begin; i < end; ++i) {
    const int64_t row = int64_t{i} * partials.heads + head;
    const float weight = exp2f(partials.log_sums[row] - largest);
    const float4 value =
        *reinterpret_cast<const float4*>(partials.values + row * partials.stored_dim + column);
    weights += weight;
    sum.x += weight * value.x;
    sum.y += weight * value.y;
    sum.z += weight * value.z;
    sum.w += weight * value.w;
  }
  const float inverse = 1 / weights;
  return {sum.x * inverse, sum.y * inverse, sum.z * inverse, sum.w * inverse};
}

struct PlainOut {
  uint2* values;
};
struct QuantizedOut {
  uint32_t* codes;
  float* scales;
};

__device__ float LargestMagnitude(const float4& x) {
  return fmaxf(fmaxf(Magnitude(x.x), Magnitude(x.y)), fmaxf(Magnitude(x.z), Magnitude(x.w)));
}

__device__ uint2 PackBf16(const float4& x) {
  uint2 raw;
  reinterpret_cast<__nv_bfloat162*>(&raw)[0] = __floats2bfloat162_rn(x.x, x.y);
  reinterpret_cast<__nv_bfloat162*>(&raw)[1] = __floats2bfloat162_rn(x.z, x.w);
  return raw;
}

// One block a token; quad i of the row belongs to thread i % threads.
template <int kQuads, class Out>
__global__ void __launch_bounds__(kMaxRowThreads)
    MergeKernel(PartialResults partials, int quads, Out out) {
  LetNextKernelStart();
  const int begin = partials.begin[blockIdx.x];
  const int end = partials.begin[blockIdx.x + 1];
  WaitForEarlierKernels();
  if (begin == end) return;
  float4 row[kQuads];
  SumAndMax all;
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const int i = threadIdx.x + q * blockDim.x;
    row[q] = i < quads ? MergeQuad(partials, begin, end, i) : float4{};
    all.max = fmaxf(all.max, LargestMagnitude(row[q]));
  }
  const int64_t first = int64_t{blockIdx.x} * quads;
  if constexpr (std::is_same_v<Out, PlainOut>) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int i = threadIdx.x + q * blockDim.x;
      if (i < quads) out.values[first + i] = PackBf16(row[q]);
    }
  } else {
    const E4M3Row scale(BlockReduce(all).max);
    if (threadIdx.x == 0) out.scales[blockIdx.x] = scale.scale;
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int i = threadIdx.x + q * blockDim.x;
      if (i >= quads) continue;
      const Octet octet = {{row[q].x, row[q].y, row[q].z, row[q].w}};
      out.codes[first + i] = scale.Codes(octet).x;
    }
  }
}

template <class Out>
absl::Status Launch(const PartialResults& partials, int64_t tokens, const Out& out,
                    cudaStream_t stream) {
  const int64_t width = int64_t{partials.heads} * partials.head_dim;
  if (width > kMaxWidth) {
    return absl::InvalidArgumentError(StrCat(
        "attention: found ", width, " columns (heads * head_dim), expected at most ", kMaxWidth));
  }
  if (tokens == 0) return absl::OkStatus();
  const int quads = static_cast<int>(width / kQuad);
  const auto launch = [&](auto per_thread) {
    const int threads = (quads + per_thread.value - 1) / per_thread.value;
    return LaunchOverlapped("MergeAttention", MergeKernel<per_thread.value, Out>,
                            static_cast<unsigned>(tokens), (threads + 31) / 32 * 32, 0, stream,
                            partials, quads, out);
  };
  if (quads <= kMaxRowThreads) return launch(std::integral_constant<int, 1>{});
  if (quads <= 2 * kMaxRowThreads) return launch(std::integral_constant<int, 2>{});
  return launch(std::integral_constant<int, 4>{});
}

}  // namespace

absl::Status MergePartials(const PartialResults& partials, int64_t tokens, __nv_bfloat16* out,
                           cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(CheckPointer("out", out, 16));
  return Launch(partials, tokens, PlainOut{reinterpret_cast<uint2*>(out)}, stream);
}

absl::Status MergePartialsQuantize(const PartialResults& partials, int64_t tokens, uint8_t* codes,
                                   float* scales, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(CheckPointer("codes", codes, 4));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("scales", scales, 4));
  return Launch(partials, tokens, QuantizedOut{reinterpret_cast<uint32_t*>(codes), scales}, stream);
}

}  // namespace nibble
