#include <cuda_fp8.h>

#include <algorithm>

#include "quant/base/status_macros.h"
#include "quant/kernels/cuda/overlap.cuh"
#include "quant/kernels/cuda/rotary.h"

namespace nibble {
namespace {

constexpr int kThreads = 128;

// kWidth consecutive bf16, 16 or 4 bytes.
template <int kWidth>
struct Piece {
  float x[kWidth];
};

template <int kWidth>
struct RawOf;
template <>
struct RawOf<8> {
  using Bf16 = uint4;
  using E4M3 = uint2;
};
template <>
struct RawOf<2> {
  using Bf16 = uint32_t;
  using E4M3 = uint16_t;
};

template <int kWidth>
__device__ Piece<kWidth> LoadPiece(const __nv_bfloat16* from) {
  const auto raw = *reinterpret_cast<const typename RawOf<kWidth>::Bf16*>(from);
  const auto* pairs = reinterpret_cast<const __nv_bfloat162*>(&raw);
  Piece<kWidth> piece;
#pragma unroll
  for (int i = 0; i < kWidth / 2; ++i) {
    const float2 pair = __bfloat1622float2(pairs[i]);
    piece.x[2 * i] = pair.x;
    piece.x[2 * i + 1] = pair.y;
  }
  return piece;
}

template <int kWidth>
__device__ void StorePiece(__nv_bfloat16* to, const Piece<kWidth>& piece, float /*inverse_scale*/) {
  typename RawOf<kWidth>::Bf16 raw;
  auto* pairs = reinterpret_cast<__nv_bfloat162*>(&raw);
#pragma unroll
  for (int i = 0; i < kWidth / 2; ++i) {
    pairs[i] = __floats2bfloat162_rn(piece.x[2 * i], piece.x[2 * i + 1]);
  }
  *reinterpret_cast<typename RawOf<kWidth>::Bf16*>(to) = raw;
}

template <int kWidth>
__device__ void StorePiece(uint8_t* to, const Piece<kWidth>& piece, float inverse_scale) {
  typename RawOf<kWidth>::E4M3 raw;
  auto* pairs = reinterpret_cast<__nv_fp8x2_storage_t*>(&raw);
#pragma unroll
  for (int i = 0; i < kWidth / 2; ++i) {
    pairs[i] = __nv_cvt_float2_to_fp8x2(
        make_float2(piece.x[2 * i] * inverse_scale, piece.x[2 * i + 1] * inverse_scale),
        __NV_SATFINITE, __NV_E4M3);
  }
  *reinterpret_cast<typename RawOf<kWidth>::E4M3*>(to) = raw;
}

template <class Kv>
struct Shape {
  QkvTokens step;
  __nv_bfloat16* q;
  Kv* k;
  Kv* v;
  float inverse_k_scale;
  float inverse_v_scale;
  int kv_heads;
  int head_dim;
  int stored_dim;
};

// Grid [tokens, parts]: a block computes the token's angles and takes kThreads pieces of its heads.
// A piece of a head is kWidth channels and their partners half a head on; beyond the halves of a
// padded head come pieces of zeros.
template <int kWidth, class Kv>
__global__ void __launch_bounds__(kThreads) RotateAndAppendKernel(Shape<Kv> shape) {
  LetNextKernelStart();
  __shared__ float2 turns[64];  // (cos, sin) of each pair of channels
  const int token = blockIdx.x;
  const int half = shape.head_dim / 2;
  const int slot = shape.step.slots[token];
  const bool rotates = shape.step.frequencies != nullptr;
  if (rotates && threadIdx.x < half) {
    const float position = static_cast<float>(shape.step.positions[token]);
    float2 turn;
    sincosf(position * shape.step.frequencies[threadIdx.x], &turn.y, &turn.x);
    turns[threadIdx.x] = turn;
  }
  __syncthreads();
  WaitForEarlierKernels();
  if (slot < 0) return;

  const int pieces = shape.stored_dim / 2 / kWidth;  // of a head, padding included
  const int item = blockIdx.y * kThreads + threadIdx.x;
  const int head = item / pieces;  // of q, then k, then v
  const int heads = shape.step.heads;
  if (head >= heads + 2 * shape.kv_heads) return;
  const int i = item % pieces * kWidth;
  const bool is_v = head >= heads + shape.kv_heads;

  Piece<kWidth> low{};
  Piece<kWidth> high{};
  if (i < half) {
    const int64_t row = int64_t{token} * (heads + 2 * shape.kv_heads) + head;
    const __nv_bfloat16* from = shape.step.qkv + row * shape.head_dim + i;
    low = LoadPiece<kWidth>(from);
    high = LoadPiece<kWidth>(from + half);
    if (rotates && !is_v) {
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        const auto [cos, sin] = turns[i + e];
        const float x = low.x[e];
        low.x[e] = x * cos - high.x[e] * sin;
        high.x[e] = high.x[e] * cos + x * sin;
      }
    }
  }
  // A padded head's halves lie side by side, its zeros after them.
  const int low_at = i < half ? i : half + i;
  const int high_at = i < half ? half + i : shape.stored_dim / 2 + i;
  const auto store = [&](auto* to, float inverse_scale) {
    StorePiece(to + low_at, low, inverse_scale);
    StorePiece(to + high_at, high, inverse_scale);
  };
  if (head < heads) {
    store(shape.q + (int64_t{token} * heads + head) * shape.stored_dim, 1.f);
  } else {
    const int kv_head = (head - heads) % shape.kv_heads;
    Kv* cache = is_v ? shape.v : shape.k;
    store(cache + (int64_t{slot} * shape.kv_heads + kv_head) * shape.stored_dim,
          is_v ? shape.inverse_v_scale : shape.inverse_k_scale);
  }
}

template <class Kv>
absl::Status Launch(const QkvTokens& step, const PagedKv& kv, __nv_bfloat16* q,
                    cudaStream_t stream) {
  const int stored_dim = StoredHeadDim(kv.head_dim);
  const Shape<Kv> shape = {step,
                           q,
                           static_cast<Kv*>(kv.k),
                           static_cast<Kv*>(kv.v),
                           1 / kv.k_scale,
                           1 / kv.v_scale,
                           kv.kv_heads,
                           kv.head_dim,
                           stored_dim};
  const int width = kv.head_dim / 2 % 8 == 0 ? 8 : 2;
  const int items = (step.heads + 2 * kv.kv_heads) * (stored_dim / 2 / width);
  const dim3 grid(static_cast<unsigned>(step.tokens), (items + kThreads - 1) / kThreads);
  const auto kernel = width == 8 ? RotateAndAppendKernel<8, Kv> : RotateAndAppendKernel<2, Kv>;
  return LaunchOverlapped("RotateAndAppend", kernel, grid, kThreads, 0, stream, shape);
}

}  // namespace

absl::Status RotateAndAppend(const QkvTokens& step, const PagedKv& kv, __nv_bfloat16* q,
                             cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(CheckPagedKv(kv));
  if (step.tokens < 0 || step.tokens > INT32_MAX || step.heads <= 0 ||
      step.heads % kv.kv_heads != 0) {
    return absl::InvalidArgumentError(
        StrCat("rotary: found ", step.tokens, " tokens of ", step.heads, " heads, expected 0 or ",
               "more tokens and a multiple of ", kv.kv_heads, " heads"));
  }
  NIBBLE_RETURN_IF_ERROR(CheckPointer("qkv", step.qkv, 16));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("positions", step.positions, 4));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("slots", step.slots, 4));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("q", q, 16));
  if (step.tokens == 0) return absl::OkStatus();
  return kv.format == KvFormat::kBf16 ? Launch<__nv_bfloat16>(step, kv, q, stream)
                                      : Launch<uint8_t>(step, kv, q, stream);
}

}  // namespace nibble
