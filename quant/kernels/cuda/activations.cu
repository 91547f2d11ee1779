#include "quant/base/status_macros.h"
#include "quant/kernels/cuda/activations.h"
#include "quant/kernels/cuda/overlap.cuh"
#include "quant/kernels/cuda/row.cuh"

namespace nibble {
namespace {

__device__ float Silu(float x) { return __fdividef(x, 1.f + __expf(-x)); }

// What a linear's input is made of: the row as it is, its positive part, or silu(gate) * up of a
// row that holds `octets` of gate and then as many of up.
enum class Source { kPlain, kRelu, kSiluMul };

template <Source kSource>
__device__ Octet Load(const uint4* rows, int octets, int i) {
  const int64_t first = int64_t{blockIdx.x} * octets * (kSource == Source::kSiluMul ? 2 : 1);
  Octet x = Unpack(rows[first + i]);
  if constexpr (kSource == Source::kRelu) {
#pragma unroll
    for (float& value : x.x) value = value < 0 ? 0.f : value;  // a NaN stays one
  }
  if constexpr (kSource == Source::kSiluMul) {
    const Octet up = Unpack(rows[first + octets + i]);
#pragma unroll
    for (int e = 0; e < kOctet; ++e) x.x[e] = Silu(x.x[e]) * up.x[e];
  }
  return x;
}

// One block a row, whose values stay in registers between the maximum and the codes.
template <Source kSource, int kOctets>
__global__ void __launch_bounds__(kMaxRowThreads)
    QuantizeKernel(const uint4* rows, int octets, uint2* codes, float* scales) {
  LetNextKernelStart();
  WaitForEarlierKernels();
  Octet x[kOctets];
  SumAndMax all;
#pragma unroll
  for (int o = 0; o < kOctets; ++o) {
    const int i = threadIdx.x + o * blockDim.x;
    x[o] = i < octets ? Load<kSource>(rows, octets, i) : Octet{};
    all.max = fmaxf(all.max, LargestMagnitude(x[o]));
  }
  const E4M3Row row(BlockReduce(all).max);
  if (threadIdx.x == 0) scales[blockIdx.x] = row.scale;
#pragma unroll
  for (int o = 0; o < kOctets; ++o) {
    const int i = threadIdx.x + o * blockDim.x;
    if (i < octets) codes[int64_t{blockIdx.x} * octets + i] = row.Codes(x[o]);
  }
}

template <Source kSource>
__global__ void __launch_bounds__(kMaxRowThreads)
    ActivateKernel(const uint4* rows, int octets, uint4* out) {
  LetNextKernelStart();
  WaitForEarlierKernels();
  for (int i = threadIdx.x; i < octets; i += blockDim.x) {
    out[int64_t{blockIdx.x} * octets + i] = Pack(Load<kSource>(rows, octets, i));
  }
}

template <Source kSource>
absl::Status Quantize(std::string_view name, const __nv_bfloat16* x, int64_t tokens, int64_t width,
                      uint8_t* codes, float* scales, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(CheckRows("activations", tokens, width));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("x", x, 16));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("codes", codes, 8));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("scales", scales, 4));
  if (tokens == 0) return absl::OkStatus();
  const RowShape shape = ShapeOfRow(width);
  return ForOctetsPerThread(shape, [&](auto octets) {
    return LaunchOverlapped(name, QuantizeKernel<kSource, octets.value>,
                            static_cast<unsigned>(tokens), shape.threads, 0, stream,
                            reinterpret_cast<const uint4*>(x), shape.octets,
                            reinterpret_cast<uint2*>(codes), scales);
  });
}

template <Source kSource>
absl::Status Activate(std::string_view name, const __nv_bfloat16* x, int64_t tokens, int64_t width,
                      __nv_bfloat16* out, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(CheckRows("activations", tokens, width));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("x", x, 16));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("out", out, 16));
  if (tokens == 0) return absl::OkStatus();
  const RowShape shape = ShapeOfRow(width);
  return LaunchOverlapped(name, ActivateKernel<kSource>, static_cast<unsigned>(tokens),
                          shape.threads, 0, stream, reinterpret_cast<const uint4*>(x), shape.octets,
                          reinterpret_cast<uint4*>(out));
}

}  // namespace

absl::Status QuantizeActivationsE4M3(const __nv_bfloat16* x, int64_t tokens, int64_t width,
                                     uint8_t* codes, float* scales, cudaStream_t stream) {
  return Quantize<Source::kPlain>("QuantizeActivationsE4M3", x, tokens, width, codes, scales,
                                  stream);
}

absl::Status ReluQuantize(const __nv_bfloat16* x, int64_t tokens, int64_t width, uint8_t* codes,
                          float* scales, cudaStream_t stream) {
  return Quantize<Source::kRelu>("ReluQuantize", x, tokens, width, codes, scales, stream);
}

absl::Status SiluMulQuantize(const __nv_bfloat16* gate_up, int64_t tokens, int64_t width,
                             uint8_t* codes, float* scales, cudaStream_t stream) {
  return Quantize<Source::kSiluMul>("SiluMulQuantize", gate_up, tokens, width, codes, scales,
                                    stream);
}

absl::Status Relu(const __nv_bfloat16* x, int64_t tokens, int64_t width, __nv_bfloat16* out,
                  cudaStream_t stream) {
  return Activate<Source::kRelu>("Relu", x, tokens, width, out, stream);
}

absl::Status SiluMul(const __nv_bfloat16* gate_up, int64_t tokens, int64_t width,
                     __nv_bfloat16* out, cudaStream_t stream) {
  return Activate<Source::kSiluMul>("SiluMul", gate_up, tokens, width, out, stream);
}

}  // namespace nibble
