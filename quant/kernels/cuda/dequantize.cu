#include <algorithm>
#include <type_traits>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/formats/number.h"
#include "quant/kernels/cuda/dequantize.h"
#include "quant/kernels/cuda/launch.h"

namespace nibble {
namespace {

constexpr int kThreads = 256;
// Columns of one thread. Every group but a whole row is a multiple of it wide, so a thread's
// columns lie in one group.
constexpr int kColumns = 8;

template <class Number>
constexpr bool kIsInteger =
    std::is_same_v<Number, number::Int4> || std::is_same_v<Number, number::Int8>;

template <class Number, bool kAsymmetric>
__device__ float Decode(uint8_t code, int zero) {
  if constexpr (kAsymmetric) return static_cast<float>(static_cast<int>(code) - zero);
  return Number::Decode(code);
}

__device__ float GroupScale(const DeviceQuantizedMatrix& matrix, int64_t groups, int64_t row,
                            int64_t group) {
  switch (matrix.spec.constraint) {
    case ScaleConstraint::kNone:
      return matrix.scale[row * groups + group];
    case ScaleConstraint::kM1:
      return number::PowerOfTwo(matrix.exponent[row * groups + group]);
    case ScaleConstraint::kM2:
      break;
  }
  const uint8_t pair = matrix.k[row * ((groups + 1) / 2) + group / 2];
  return matrix.row_scale[row] * number::PowerOfTwo(-((pair >> (4 * (group % 2))) & 0xf));
}

// Codes of a thread's columns, one to a byte. `count` < kColumns in a row's last columns only.
template <int kBits>
__device__ void LoadCodes(const uint8_t* from, bool aligned, int count,
                          uint8_t (&codes)[kColumns]) {
  constexpr int kBytes = kColumns * kBits / 8;
  uint8_t packed[kBytes] = {};
  if (aligned && count == kColumns) {
    if constexpr (kBits == 4) {
      *reinterpret_cast<uint32_t*>(packed) = *reinterpret_cast<const uint32_t*>(from);
    } else {
      *reinterpret_cast<uint2*>(packed) = *reinterpret_cast<const uint2*>(from);
    }
  } else {
    for (int i = 0; i < (count * kBits + 7) / 8; ++i) packed[i] = from[i];
  }
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    codes[i] = kBits == 4 ? (packed[i / 2] >> (4 * (i % 2))) & 0xf : packed[i];
  }
}

__device__ void Store(float* to, const float (&values)[kColumns]) {
  reinterpret_cast<float4*>(to)[0] = *reinterpret_cast<const float4*>(values);
  reinterpret_cast<float4*>(to)[1] = *reinterpret_cast<const float4*>(values + 4);
}

__device__ void Store(__nv_bfloat16* to, const float (&values)[kColumns]) {
  __align__(16) __nv_bfloat162 pairs[kColumns / 2];
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) {
    pairs[i] = __floats2bfloat162_rn(values[2 * i], values[2 * i + 1]);
  }
  *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(pairs);
}

__device__ void StoreOne(float* to, float value) { *to = value; }
__device__ void StoreOne(__nv_bfloat16* to, float value) { *to = __float2bfloat16_rn(value); }

// One thread per kColumns columns of one row; the grid strides over rows * ceil(cols / kColumns).
template <class Number, bool kAsymmetric, class Value>
__global__ void __launch_bounds__(kThreads)
    DequantizeKernel(DeviceQuantizedMatrix matrix, int64_t groups, int64_t group_width,
                     Value* __restrict__ values) {
  const int64_t pieces = (matrix.cols + kColumns - 1) / kColumns;
  const int64_t row_bytes = (matrix.cols * Number::kBits + 7) / 8;
  const bool aligned = row_bytes % Number::kBits == 0;  // 4-byte loads of nibbles, 8-byte of bytes
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t piece = int64_t{blockIdx.x} * kThreads + threadIdx.x; piece < matrix.rows * pieces;
       piece += stride) {
    const int64_t row = piece / pieces;
    const int64_t col = piece % pieces * kColumns;
    const int64_t group = col / group_width;
    const int count = static_cast<int>(min(int64_t{kColumns}, matrix.cols - col));
    const float scale = GroupScale(matrix, groups, row, group);
    const int zero = kAsymmetric ? matrix.zero[row * groups + group] : 0;
    uint8_t codes[kColumns];
    LoadCodes<Number::kBits>(matrix.codes + row * row_bytes + col * Number::kBits / 8, aligned,
                             count, codes);
    __align__(16) float decoded[kColumns];
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      decoded[i] = Decode<Number, kAsymmetric>(codes[i], zero) * scale;
    }
    Value* out = values + row * matrix.cols + col;
    if (matrix.cols % kColumns == 0) {
      Store(out, decoded);
    } else {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        if (i < count) StoreOne(out + i, decoded[i]);
      }
    }
  }
}

absl::Status Check(const DeviceQuantizedMatrix& matrix, const void* values) {
  NIBBLE_RETURN_IF_ERROR(matrix.spec.Validate());
  if (matrix.rows <= 0 || matrix.cols <= 0) {
    return absl::InvalidArgumentError(StrCat("dequantize: found shape [", matrix.rows, ", ",
                                             matrix.cols, "], expected positive sizes"));
  }
  NIBBLE_RETURN_IF_ERROR(CheckPointer("values", values, 16));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("codes", matrix.codes, 8));
  if (matrix.spec.asymmetric) NIBBLE_RETURN_IF_ERROR(CheckPointer("zero", matrix.zero, 1));
  switch (matrix.spec.constraint) {
    case ScaleConstraint::kNone:
      return CheckPointer("scale", matrix.scale, 4);
    case ScaleConstraint::kM1:
      return CheckPointer("exponent", matrix.exponent, 1);
    case ScaleConstraint::kM2:
      break;
  }
  NIBBLE_RETURN_IF_ERROR(CheckPointer("k", matrix.k, 1));
  return CheckPointer("row_scale", matrix.row_scale, 4);
}

template <class Number, bool kAsymmetric, class Value>
absl::Status Launch(const DeviceQuantizedMatrix& matrix, Value* values, cudaStream_t stream) {
  const int64_t pieces = matrix.rows * ((matrix.cols + kColumns - 1) / kColumns);
  const int64_t blocks = std::min<int64_t>((pieces + kThreads - 1) / kThreads, INT32_MAX);
  DequantizeKernel<Number, kAsymmetric><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
      matrix, GroupCount(matrix.cols, matrix.spec.group_size),
      GroupWidth(matrix.cols, matrix.spec.group_size), values);
  return CheckLaunch("Dequantize");
}

template <class Value>
absl::Status DequantizeTo(const DeviceQuantizedMatrix& matrix, Value* values, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(Check(matrix, values));
  return number::Visit(matrix.spec.format, [&](auto type) {
    using Number = decltype(type);
    if constexpr (kIsInteger<Number>) {
      if (matrix.spec.asymmetric) return Launch<Number, true>(matrix, values, stream);
    }
    return Launch<Number, false>(matrix, values, stream);
  });
}

}  // namespace

absl::Status Dequantize(const DeviceQuantizedMatrix& matrix, float* values, cudaStream_t stream) {
  return DequantizeTo(matrix, values, stream);
}

absl::Status Dequantize(const DeviceQuantizedMatrix& matrix, __nv_bfloat16* values,
                        cudaStream_t stream) {
  return DequantizeTo(matrix, values, stream);
}

}  // namespace nibble
