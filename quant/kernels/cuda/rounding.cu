// Compiled without contraction of products and sums: the arithmetic is the CPU's to the bit.
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/formats/activation_steps.h"
#include "quant/kernels/cuda/launch.h"
#include "quant/kernels/cuda/rounding.h"

namespace nibble {
namespace {

constexpr int kThreads = 256;

__device__ float ToFloat(float x) { return x; }
__device__ float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ void Store(float* to, float x) { *to = x; }
__device__ void Store(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }

// Of the block's row and 0, the same in every thread.
template <class Value>
__device__ number::Range RangeOfRow(const Value* row, int64_t width) {
  int low = 0;
  int high = 0;
  for (int64_t i = threadIdx.x; i < width; i += kThreads) {
    const int ordered = number::Ordered(__float_as_int(ToFloat(row[i])));
    low = min(low, ordered);
    high = max(high, ordered);
  }
  __shared__ int lows[kThreads / 32];
  __shared__ int highs[kThreads / 32];
  low = __reduce_min_sync(0xffffffffu, low);
  high = __reduce_max_sync(0xffffffffu, high);
  if (threadIdx.x % 32 == 0) {
    lows[threadIdx.x / 32] = low;
    highs[threadIdx.x / 32] = high;
  }
  __syncthreads();
  for (int warp = 0; warp < kThreads / 32; ++warp) {
    low = min(low, lows[warp]);
    high = max(high, highs[warp]);
  }
  return number::RangeOfOrdered(low, high);
}

// One block a row.
template <class Number, bool kAsymmetric, class Value>
__global__ void __launch_bounds__(kThreads) RoundKernel(const Value* x, int64_t width, Value* out) {
  const int64_t first = int64_t{blockIdx.x} * width;
  const number::Range range = RangeOfRow(x + first, width);
  const number::Steps steps =
      kAsymmetric ? number::AsymmetricSteps(range) : number::SymmetricSteps(range, Number::kMax);
  for (int64_t i = first + threadIdx.x; i < first + width; i += kThreads) {
    const float value = ToFloat(x[i]);
    Store(out + i, kAsymmetric ? number::RoundAsymmetric(value, steps)
                               : number::RoundSymmetric<Number>(value, steps));
  }
}

template <class Value>
absl::Status Round(const ActivationSpec& spec, const Value* x, int64_t tokens, int64_t width,
                   Value* out, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(spec.Validate());
  if (tokens < 0 || tokens > INT32_MAX || width <= 0) {
    return absl::InvalidArgumentError(StrCat("RoundActivationRows: found shape [", tokens, ", ",
                                             width, "], expected 0..2^31-1 rows that hold values"));
  }
  if (tokens == 0) return absl::OkStatus();
  NIBBLE_RETURN_IF_ERROR(CheckPointer("x", x, sizeof(Value)));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("out", out, sizeof(Value)));
  const auto rows = static_cast<unsigned>(tokens);
  if (spec.asymmetric) {
    RoundKernel<number::Int8, true><<<rows, kThreads, 0, stream>>>(x, width, out);
  } else {
    number::Visit(spec.format, [&](auto type) {
      RoundKernel<decltype(type), false><<<rows, kThreads, 0, stream>>>(x, width, out);
    });
  }
  return CheckLaunch("RoundActivationRows");
}

}  // namespace

absl::Status RoundActivationRows(const ActivationSpec& spec, const float* x, int64_t tokens,
                                 int64_t width, float* out, cudaStream_t stream) {
  return Round(spec, x, tokens, width, out, stream);
}

absl::Status RoundActivationRows(const ActivationSpec& spec, const __nv_bfloat16* x, int64_t tokens,
                                 int64_t width, __nv_bfloat16* out, cudaStream_t stream) {
  return Round(spec, x, tokens, width, out, stream);
}

}  // namespace nibble
