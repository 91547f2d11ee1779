// Scales of one row by one warp, all lanes calling together; results are the same in every lane.
// Private to gptq/cuda.
#pragma once

#include <cstdint>

#include "quant/formats/weight_steps.h"
#include "quant/gptq/cuda/solver.h"

namespace nibble {

inline constexpr unsigned kAllLanes = 0xffffffffu;
inline constexpr int kLanes = 32;

__device__ inline int Lane() { return static_cast<int>(threadIdx.x) % kLanes; }

__device__ inline float WarpMin(float x) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2)
    x = fminf(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}

__device__ inline float WarpMax(float x) { return -WarpMin(-x); }

// One row's part of DeviceRowScales.
struct RowScalesView {
  float* scale;
  uint8_t* zero;
  float* row_scale;
  int8_t* exponent;
  int32_t* clamped;

  __device__ RowScalesView(const DeviceRowScales& all, int64_t row, int64_t groups)
      : scale(all.scale + row * groups),
        zero(all.zero == nullptr ? nullptr : all.zero + row * groups),
        row_scale(all.row_scale == nullptr ? nullptr : all.row_scale + row),
        exponent(all.exponent == nullptr ? nullptr : all.exponent + row * groups),
        clamped(all.clamped + row) {}
};

template <class Code>
__device__ GroupScale WarpGroupScale(const float* values, int64_t count) {
  float low = 0;
  float high = 0;
  for (int64_t i = Lane(); i < count; i += kLanes) {
    low = fminf(low, values[i]);
    high = fmaxf(high, values[i]);
  }
  return Code::Scale(WarpMin(low), WarpMax(high));
}

// Lanes 0..3 each sum every fourth value, as the CPU's partial sums do.
template <class Code>
__device__ double WarpSquaredError(const float* values, int64_t count, float scale) {
  constexpr int kSums = 4;
  double sum = 0;
  if (Lane() < kSums) {
    for (int64_t i = Lane(); i < count; i += kSums) {
      const double error = Code::Error(values[i], scale);
      sum += error * error;
    }
  }
  const auto part = [&](int lane) { return __shfl_sync(kAllLanes, sum, lane); };
  return (part(0) + part(1)) + (part(2) + part(3));
}

// The k of an M2 group, clamped.
template <class Code>
__device__ int WarpM2Exponent(const WeightSpec& spec, const float* values, int64_t count,
                              float group_scale, float row_scale, int* clamped) {
  const int k = number::ChooseM2Exponent(spec.rounding, group_scale, row_scale, [&](float scale) {
    return WarpSquaredError<Code>(values, count, scale);
  });
  const int result = number::ClampOffset(k);
  *clamped += result != k ? 1 : 0;
  return result;
}

__device__ inline int WarpMaxExponent(const int8_t* exponents, int64_t count) {
  int largest = -128;
  for (int64_t g = Lane(); g < count; g += kLanes) largest = max(largest, int{exponents[g]});
  return __reduce_max_sync(kAllLanes, largest);
}

__device__ inline int WarpMinExponent(const int8_t* exponents, int64_t count) {
  int smallest = 127;
  for (int64_t g = Lane(); g < count; g += kLanes) smallest = min(smallest, int{exponents[g]});
  return __reduce_min_sync(kAllLanes, smallest);
}

// formats' UpdateGroupScale.
template <class Code>
__device__ GroupScale WarpUpdateGroupScale(const WeightSpec& spec, const float* values,
                                           int64_t count, int64_t group, int64_t groups,
                                           const RowScalesView& row) {
  GroupScale updated = WarpGroupScale<Code>(values, count);
  int clamped = 0;
  int exponent = 0;
  if (spec.constraint == ScaleConstraint::kM2) {
    const float row_scale = *row.row_scale;
    exponent = WarpM2Exponent<Code>(spec, values, count, updated.scale, row_scale, &clamped);
    updated.scale = number::M2Scale(row_scale, exponent);
  } else if (spec.constraint == ScaleConstraint::kM1) {
    const int low = WarpMaxExponent(row.exponent, groups) - kMaxExponentOffset;
    const int high = min(127, WarpMinExponent(row.exponent, group) + kMaxExponentOffset);
    const int wanted = number::RoundedLog2(updated.scale).ceil;
    exponent = min(max(wanted, low), high);
    clamped = exponent != wanted ? 1 : 0;
    updated.scale = number::PowerOfTwo(exponent);
  }
  __syncwarp();  // every lane has read the exponents
  if (Lane() == 0) {
    row.scale[group] = updated.scale;
    if (Code::kAsymmetric) row.zero[group] = updated.zero;
    if (spec.constraint != ScaleConstraint::kNone)
      row.exponent[group] = static_cast<int8_t>(exponent);
    *row.clamped += clamped;
  }
  __syncwarp();
  return updated;
}

}  // namespace nibble
