#include "quant/base/status_macros.h"
#include "quant/kernels/cuda/norm.h"
#include "quant/kernels/cuda/overlap.cuh"
#include "quant/kernels/cuda/row.cuh"

namespace nibble {
namespace {

struct Rows {
  uint4* hidden;
  const uint4* delta;  // or null
  int octets;          // of a row
  const uint4* gain;
  const uint4* bias;  // LayerNorm
  float eps;
};

// This thread's octets of a row; those beyond its end are zeros that are not stored.
template <int kOctets>
struct Share {
  uint4 x[kOctets];
  uint4 gain[kOctets];

  __device__ static int Index(int o) { return threadIdx.x + o * blockDim.x; }

  // Gains don't depend on earlier kernels, the residual does.
  __device__ void LoadGain(const Rows& rows) {
#pragma unroll
    for (int o = 0; o < kOctets; ++o) {
      gain[o] = Index(o) < rows.octets ? rows.gain[Index(o)] : uint4{};
    }
  }

  // x = bf16(hidden + delta), stored.
  __device__ void AddResidual(const Rows& rows) {
    const int64_t first = int64_t{blockIdx.x} * rows.octets;
#pragma unroll
    for (int o = 0; o < kOctets; ++o) {
      x[o] = Index(o) < rows.octets ? rows.hidden[first + Index(o)] : uint4{};
      if (rows.delta == nullptr || Index(o) >= rows.octets) continue;
      Octet sum = Unpack(x[o]);
      const Octet delta = Unpack(rows.delta[first + Index(o)]);
#pragma unroll
      for (int e = 0; e < kOctet; ++e) sum.x[e] += delta.x[e];
      x[o] = Pack(sum);
      rows.hidden[first + Index(o)] = x[o];
    }
  }

  // Calls function(o, octet o of x) for each octet within the row.
  template <class Function>
  __device__ void ForEach(const Rows& rows, Function&& function) const {
#pragma unroll
    for (int o = 0; o < kOctets; ++o) {
      if (Index(o) < rows.octets) function(o, Unpack(x[o]));
    }
  }
};

// y = x * g * inverse, inverse = 1 / rms.
template <int kOctets>
struct RmsNorm {
  const Share<kOctets>& share;
  float inverse;
  float amax;  // of x g

  __device__ RmsNorm(const Share<kOctets>& mine, const Rows& rows) : share(mine) {
    SumAndMax all;
    share.ForEach(rows, [&](int o, const Octet& x) {
#pragma unroll
      for (const float value : x.x) all.sum += value * value;
      all.max = fmaxf(all.max, LargestMagnitude(TimesGain(o, x)));
    });
    all = BlockReduce(all);
    inverse = rsqrtf(all.sum / static_cast<float>(rows.octets * kOctet) + rows.eps);
    amax = all.max;
  }

  __device__ Octet TimesGain(int o, Octet x) const {
    const Octet gain = Unpack(share.gain[o]);
#pragma unroll
    for (int e = 0; e < kOctet; ++e) x.x[e] *= gain.x[e];
    return x;
  }
};

// y = (x - mean) * inverse * g + b, inverse = 1 / sqrt(variance + eps), the variance taken from the
// differences.
template <int kOctets>
struct LayerNorm {
  const Share<kOctets>& share;
  const Rows& rows;
  float mean;
  float inverse;

  __device__ LayerNorm(const Share<kOctets>& mine, const Rows& all) : share(mine), rows(all) {
    const float width = static_cast<float>(rows.octets * kOctet);
    SumAndMax sums;
    share.ForEach(rows, [&](int, const Octet& x) {
#pragma unroll
      for (const float value : x.x) sums.sum += value;
    });
    mean = BlockReduce(sums).sum / width;
    SumAndMax squares;
    share.ForEach(rows, [&](int, const Octet& x) {
#pragma unroll
      for (const float value : x.x) squares.sum += (value - mean) * (value - mean);
    });
    inverse = rsqrtf(BlockReduce(squares).sum / width + rows.eps);
  }

  __device__ Octet operator()(int o, Octet x) const {
    const Octet gain = Unpack(share.gain[o]);
    const Octet bias = Unpack(rows.bias[share.Index(o)]);
#pragma unroll
    for (int e = 0; e < kOctet; ++e) {
      x.x[e] = (x.x[e] - mean) * inverse * gain.x[e] + bias.x[e];
    }
    return x;
  }

  __device__ float Amax() const {
    SumAndMax all;
    share.ForEach(rows, [&](int o, const Octet& x) {
      all.max = fmaxf(all.max, LargestMagnitude((*this)(o, x)));
    });
    return BlockReduce(all).max;
  }
};

template <int kOctets, bool kLayerNorm>
__global__ void __launch_bounds__(kMaxRowThreads)
    AddNormQuantizeKernel(Rows rows, uint2* codes, float* scales) {
  LetNextKernelStart();
  Share<kOctets> share;
  share.LoadGain(rows);
  WaitForEarlierKernels();
  share.AddResidual(rows);
  const auto write = [&](const E4M3Row& row, float scale, auto&& value) {
    if (threadIdx.x == 0) scales[blockIdx.x] = scale;
    share.ForEach(rows, [&](int o, const Octet& x) {
      codes[int64_t{blockIdx.x} * rows.octets + share.Index(o)] = row.Codes(value(o, x));
    });
  };
  if constexpr (kLayerNorm) {
    const LayerNorm<kOctets> norm(share, rows);
    const E4M3Row row(norm.Amax());
    write(row, row.scale, norm);
  } else {
    const RmsNorm<kOctets> norm(share, rows);
    const E4M3Row row(norm.amax);
    write(row, row.scale * norm.inverse,
          [&](int o, const Octet& x) { return norm.TimesGain(o, x); });
  }
}

template <int kOctets, bool kLayerNorm>
__global__ void __launch_bounds__(kMaxRowThreads) AddNormKernel(Rows rows, uint4* out) {
  LetNextKernelStart();
  Share<kOctets> share;
  share.LoadGain(rows);
  WaitForEarlierKernels();
  share.AddResidual(rows);
  const auto write = [&](auto&& value) {
    share.ForEach(rows, [&](int o, const Octet& x) {
      out[int64_t{blockIdx.x} * rows.octets + share.Index(o)] = Pack(value(o, x));
    });
  };
  if constexpr (kLayerNorm) {
    write(LayerNorm<kOctets>(share, rows));
  } else {
    const RmsNorm<kOctets> norm(share, rows);
    write([&](int o, const Octet& x) {
      Octet y = norm.TimesGain(o, x);
#pragma unroll
      for (float& value : y.x) value *= norm.inverse;
      return y;
    });
  }
}

absl::Status Check(const DeviceNorm& norm, const void* hidden, const void* delta, int64_t tokens,
                   int64_t width) {
  NIBBLE_RETURN_IF_ERROR(CheckRows("norm", tokens, width));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("gain", norm.gain, 16));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("hidden", hidden, 16));
  if (norm.bias != nullptr) NIBBLE_RETURN_IF_ERROR(CheckPointer("bias", norm.bias, 16));
  if (delta != nullptr) NIBBLE_RETURN_IF_ERROR(CheckPointer("delta", delta, 16));
  return absl::OkStatus();
}

Rows MakeRows(const DeviceNorm& norm, __nv_bfloat16* hidden, const __nv_bfloat16* delta,
              const RowShape& shape) {
  return {reinterpret_cast<uint4*>(hidden),
          reinterpret_cast<const uint4*>(delta),
          shape.octets,
          reinterpret_cast<const uint4*>(norm.gain),
          reinterpret_cast<const uint4*>(norm.bias),
          norm.eps};
}

}  // namespace

absl::Status AddNormQuantize(const DeviceNorm& norm, __nv_bfloat16* hidden,
                             const __nv_bfloat16* delta, int64_t tokens, int64_t width,
                             uint8_t* codes, float* scales, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(Check(norm, hidden, delta, tokens, width));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("codes", codes, 8));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("scales", scales, 4));
  if (tokens == 0) return absl::OkStatus();
  const RowShape shape = ShapeOfRow(width);
  return ForOctetsPerThread(shape, [&](auto octets) {
    const auto kernel = norm.bias == nullptr ? AddNormQuantizeKernel<octets.value, false>
                                             : AddNormQuantizeKernel<octets.value, true>;
    return LaunchOverlapped("AddNormQuantize", kernel, static_cast<unsigned>(tokens), shape.threads,
                            0, stream, MakeRows(norm, hidden, delta, shape),
                            reinterpret_cast<uint2*>(codes), scales);
  });
}

absl::Status AddNorm(const DeviceNorm& norm, __nv_bfloat16* hidden, const __nv_bfloat16* delta,
                     int64_t tokens, int64_t width, __nv_bfloat16* out, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(Check(norm, hidden, delta, tokens, width));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("out", out, 16));
  if (tokens == 0) return absl::OkStatus();
  const RowShape shape = ShapeOfRow(width);
  return ForOctetsPerThread(shape, [&](auto octets) {
    const auto kernel = norm.bias == nullptr ? AddNormKernel<octets.value, false>
                                             : AddNormKernel<octets.value, true>;
    return LaunchOverlapped("AddNorm", kernel, static_cast<unsigned>(tokens), shape.threads, 0,
                            stream, MakeRows(norm, hidden, delta, shape),
                            reinterpret_cast<uint4*>(out));
  });
}

}  // namespace nibble
